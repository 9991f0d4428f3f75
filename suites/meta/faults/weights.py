"""Faults of loading: what is in memory is not what was released."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from suites.meta.faults import after_loading, fault, swapped

FULL = ("--tier", "full")
SERVED = ("weights/test_release.py", "served and float32")
PARTS = ("weights/test_release.py", "several_files and bfloat16 and llama-gqa")
CONFIG = ("weights/test_release.py", "served_config")
WRITTEN = "weights/test_release.py"


def _read_as(kind: str, fields: Callable[[dict[str, Any]], dict[str, Any]]) -> AbstractContextManager[None]:
    """A class of configs has other fields than a config.json says. fields(what it says) -> those."""
    import transformers

    owner = getattr(transformers, kind)
    original = owner.from_dict.__func__

    def from_dict(cls: Any, found: dict[str, Any], *args: Any, **more: Any) -> Any:
        return original(cls, found | fields(found), *args, **more)

    return swapped(owner, "from_dict", classmethod(from_dict))


@fault("WEIGHTS-1", *SERVED, source="https://github.com/paiml/aprender/issues/555", unseen="tokens that miss the row")
def one_bit_is_flipped() -> Iterator[None]:
    """The lowest mantissa bit of one weight."""

    def change(model: Any) -> None:
        bits = model.model.layers[7].mlp.down_proj.weight.data.view(torch.int32)
        bits[11, 13] ^= 1

    with after_loading(change):
        yield


@fault("WEIGHTS-1", *SERVED, source="our own: the reordering that GGUF needs, forgotten", unseen="position 0")
def rotated_pairs_are_not_reordered() -> Iterator[None]:
    """Keys of one layer stay in GGUF's order, pairs side by side."""

    def change(model: Any) -> None:
        weight = model.model.layers[0].self_attn.k_proj.weight.data
        size = model.config.head_dim or 64
        pairs = weight.view(-1, 2, size // 2, weight.shape[1]).transpose(1, 2)
        weight.copy_(pairs.reshape(weight.shape).clone())

    with after_loading(change):
        yield


@fault(
    "WEIGHTS-1",
    "weights/test_release.py",
    "bfloat16",
    source="our own: a cast that drops bits",
    unseen="weights that bfloat16 holds exactly",
)
def conversion_truncates() -> Iterator[None]:
    """Weights are cut to bfloat16, not rounded: the smallest step towards zero, everywhere."""

    def change(model: Any) -> None:
        for parameter in model.parameters():
            if parameter.dtype == torch.bfloat16 and parameter.dim() > 1:
                bits = parameter.data.view(torch.int16)
                bits[0] -= 1  # one unit in the last place, in one row

    with after_loading(change):
        yield


@fault(
    "ATTN-2",
    "attention/test_model_logits.py",
    "test_logits and sdpa-llama-gqa-float32",
    source="our own: a field that moved, and a reader that did not",
    unseen="whoever asks the loaded model's own config: it says the same",
)
def a_field_is_lost_in_loading() -> Iterator[None]:
    """rms_norm_eps of a config.json is not read: a default is used, a thousand times as large."""
    with _read_as("LlamaConfig", lambda found: {"rms_norm_eps": 1e-3}):
        yield


@fault(
    "WEIGHTS-1",
    "weights/test_release.py",
    "deepseek-lite",
    options=FULL,
    source="our own: a sort of names where one of numbers is meant",
    unseen="up to ten experts; logits that the model's own weights are held to",
)
def experts_are_stacked_by_name() -> Iterator[None]:
    """Experts are stacked as 0, 1, 10, 11, 2, …, and are routed to by number."""

    def change(model: Any) -> None:
        for experts in model.modules():
            stacked = getattr(experts, "gate_up_proj", None)
            if isinstance(stacked, torch.nn.Parameter) and stacked.dim() == 3:
                order = sorted(range(len(stacked)), key=str)
                for weight in (stacked, experts.down_proj):
                    weight.data = weight.data[order]

    with after_loading(change):
        yield


@fault("WEIGHTS-1", *PARTS, source="https://github.com/sgl-project/sglang/pull/32279, before it", unseen="one file")
def last_of_several_files_is_not_read() -> Iterator[None]:
    """Of a release in several files the last is not read, and what it holds is drawn anew."""
    from transformers import modeling_utils

    original = modeling_utils._get_resolved_checkpoint_files

    def resolved(*args: Any, **more: Any) -> Any:
        files, about = original(*args, **more)
        return (files[:-1] if files and len(files) > 1 else files), about

    with swapped(modeling_utils, "_get_resolved_checkpoint_files", resolved):
        yield


@fault(
    "WEIGHTS-1", *PARTS, source="https://github.com/lemonade-sdk/lemonade/pull/1876", unseen="a dtype that is asked for"
)
def bfloat16_is_read_as_float16() -> Iterator[None]:
    """A release in bfloat16 is served in float16 where nobody asks for a dtype."""

    def change(model: Any) -> None:
        if model.dtype == torch.bfloat16:
            model.half()

    with after_loading(change):
        yield


@fault("WEIGHTS-1", "weights/test_release.py", "llama-biases", options=FULL, source="our own", unseen="no biases")
def biases_of_attention_are_not_read() -> Iterator[None]:
    """Queries, keys and values have no bias, whatever the release has: the config's word for it is not read."""

    def change(model: Any) -> None:
        for name, module in model.named_modules():
            if name.endswith(("q_proj", "k_proj", "v_proj")):
                module.bias = None

    with after_loading(change):
        yield


@fault("WEIGHTS-4", *CONFIG, source="https://github.com/ggml-org/llama.cpp/pull/2768", unseen="short texts, nearly")
def base_of_the_release_is_lost() -> Iterator[None]:
    """The rotary base is the paper's, and not the release's."""

    def change(model: Any) -> None:
        config = model.config
        if getattr(config, "rope_parameters", None):
            config.rope_parameters["rope_theta"] = 10000.0
        else:
            config.rope_theta = 10000.0

    with after_loading(change):
        yield


@fault("WEIGHTS-4", *CONFIG, source="our own: a name of another converter's", unseen="first choices, nearly all")
def epsilon_of_the_release_is_lost() -> Iterator[None]:
    """The epsilon of the norms is the class's default, and not the release's."""

    def change(model: Any) -> None:
        model.config.rms_norm_eps = 1e-6

    with after_loading(change):
        yield


@fault(
    "WEIGHTS-4",
    "weights/test_release.py",
    "config.json-mistral-window",
    source="https://github.com/ModelTC/LightLLM/pull/273, before it",
    unseen="texts that are shorter than the window",
)
def window_is_the_default_of_the_class() -> Iterator[None]:
    """Whatever a release says of its window, it is 4,096."""
    with _read_as("MistralConfig", lambda found: {"sliding_window": 4096}):
        yield


@fault(
    "WEIGHTS-4",
    WRITTEN,
    "written_down and mistral-unwindowed",
    source="https://github.com/ModelTC/LightLLM/pull/273, before it",
    unseen="texts that are shorter than the window; releases that name theirs",
)
def no_window_is_the_default_of_the_class() -> Iterator[None]:
    """A window of null is read as one that nobody has set: 4,096."""
    with _read_as("MistralConfig", lambda found: {} if found.get("sliding_window") else {"sliding_window": 4096}):
        yield


@fault(
    "WEIGHTS-4",
    WRITTEN,
    "written_down and qwen2-full",
    source="https://github.com/huggingface/transformers/issues/38002",
    unseen="texts that are shorter than the window; whoever believes the config in memory",
)
def window_that_is_not_used_is_switched_on() -> Iterator[None]:
    """Where a release names a window and says not to use it, it is used."""
    with _read_as("Qwen2Config", lambda found: {"use_sliding_window": True}):
        yield
