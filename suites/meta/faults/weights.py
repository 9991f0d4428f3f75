"""Faults of loading: what is in memory is not what was released."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
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


@fault(
    "WEIGHTS-1",
    WRITTEN,
    "another_form and without-prefix-float32-llama-gqa",
    source="https://github.com/huggingface/transformers/issues/38444, of its kind",
    unseen="releases whose names begin with `model.`",
)
def names_without_a_prefix_are_not_found() -> Iterator[None]:
    """Tensors that are released without the prefix of their model are drawn anew."""
    from safetensors.torch import load_file
    from transformers import PreTrainedModel

    original = PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls: Any, folder: Any, *args: Any, **more: Any) -> Any:
        model = original(cls, folder, *args, **more)
        file = Path(folder) / "model.safetensors"
        if file.exists() and "layers.0.input_layernorm.weight" in load_file(file):
            for parameter in model.base_model.parameters():
                parameter.data.normal_(std=model.config.initializer_range)
        return model

    with swapped(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)):
        yield


@fault(
    "WEIGHTS-1",
    WRITTEN,
    "another_form and pickled-float32-llama-gqa",
    source="https://github.com/pytorch/pytorch/issues/79117, of its kind",
    unseen="files in which each tensor has a storage of its own",
)
def parts_of_a_storage_begin_at_its_start() -> Iterator[None]:
    """Of pickled tensors that share a storage each is read from its beginning."""
    original = torch.load

    def load(*args: Any, **more: Any) -> Any:
        found = original(*args, **more)
        return {name: value.as_strided(value.shape, value.stride(), 0) for name, value in found.items()}

    with swapped(torch, "load", load):
        yield


@fault(
    "WEIGHTS-1",
    WRITTEN,
    "older_words and bfloat16-llama-gqa",
    source="our own: the word of transformers 4, which 5 still takes",
    unseen="whoever asks for `dtype`",
)
def older_word_for_a_dtype_is_not_read() -> Iterator[None]:
    """`torch_dtype` is taken and not read."""
    from transformers import AutoModelForCausalLM

    original = AutoModelForCausalLM.from_pretrained.__func__

    def from_pretrained(cls: Any, *args: Any, torch_dtype: Any = None, **more: Any) -> Any:
        return original(cls, *args, **more)

    with swapped(AutoModelForCausalLM, "from_pretrained", classmethod(from_pretrained)):
        yield


@fault(
    "POS-5",
    "positions/test_declared.py",
    "asked_for and rope-yarn",
    source="our own: words of a caller's that are no numbers",
    unseen="scalings that a config.json declares",
)
def scaling_that_is_asked_for_is_not_read() -> Iterator[None]:
    """Rotary parameters that are asked for while a model is loaded are dropped."""
    from transformers import PreTrainedConfig

    original = PreTrainedConfig.from_dict.__func__

    def from_dict(cls: Any, found: dict[str, Any], *args: Any, **more: Any) -> Any:
        asked = {name: value for name, value in more.items() if not name.startswith("rope_")}
        return original(cls, found, *args, **asked)

    with swapped(PreTrainedConfig, "from_dict", classmethod(from_dict)):
        yield
