"""Faults that only length brings out: in the reference models, and in the served one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, swapped
from suites.meta.faults.patches import mask
from suites.meta.faults.positions import rotary, scaling
from suites.meta.faults.scalings import parameters

REFERENCES = "positions/test_extrapolation.py"
SERVED = "positions/test_context.py"


def plain(original: Any, config: Any, *args: Any, **more: Any) -> tuple[Tensor, float]:
    """The frequencies that a config has without its scaling."""
    frequencies, _ = original(config, *args, **more)
    theta = parameters(config).get("rope_theta") or config.rope_theta
    steps = torch.arange(len(frequencies), device=frequencies.device) / len(frequencies)
    return 1 / theta**steps, 1.0


@fault("POS-10", REFERENCES, "holds and alibi", source="our own", unseen="texts within the trained length")
def a_biass_positions_have_eight_bits() -> Iterator[None]:
    """Key 256 is where key 0 is: old keys cost less than new ones."""

    from transformers.models.bloom.modeling_bloom import BloomAttention

    original = BloomAttention.forward

    def forward(self: Any, hidden_states: Tensor, residual: Tensor, alibi: Tensor, *args: Any, **more: Any) -> Any:
        places = torch.arange(alibi.shape[-1], device=alibi.device)
        bias = alibi / places.clamp(min=1) * (places % 256)
        return original(self, hidden_states, residual, bias, *args, **more)

    with swapped(BloomAttention, "forward", forward):
        yield


@fault(
    "POS-10",
    REFERENCES,
    "holds and rope-yarn",
    source="https://github.com/lablup/mlxcel/issues/1355",
    unseen="texts within the trained length",
)
def yarn_is_parsed_and_not_applied() -> Iterator[None]:
    """The model that was trained with YaRN runs on plain frequencies."""
    with scaling("yarn", plain):
        yield


@fault(
    "POS-10",
    REFERENCES,
    "holds and rope-linear",
    source="https://github.com/vllm-project/vllm/pull/55910",
    unseen="texts of up to 256 tokens",
)
def positions_end_at_twice_the_trained_length() -> Iterator[None]:
    """A table of 256 rows: what is beyond reads the last one."""
    with rotary(lambda forward, module, x, positions: forward(module, x, positions.clamp(max=255))):
        yield


@fault("POS-11", REFERENCES, "rope-yarn-untrained", source="our own", unseen="texts within the trained length")
def yarn_interpolates_by_half_its_factor() -> Iterator[None]:
    """The factor is read from another place: a quarter of what is declared."""

    def change(original: Any, config: Any, *args: Any, **more: Any) -> Any:
        p = parameters(config)
        declared = p["factor"]
        p["factor"] = declared / 4
        try:
            return original(config, *args, **more)
        finally:
            p["factor"] = declared

    with scaling("yarn", change):
        yield


@fault(
    "POS-11",
    REFERENCES,
    "rope-yarn-untrained",
    source="https://github.com/pytorch/torchtitan/pull/3787",
    unseen="models that were trained with the same fault",
)
def yarn_interpolates_what_it_should_leave() -> Iterator[None]:
    """The ramp runs the other way: fast frequencies are divided, slow ones are not."""

    def change(original: Any, config: Any, *args: Any, **more: Any) -> Any:
        frequencies, heat = original(config, *args, **more)
        untouched, _ = plain(original, config, *args, **more)
        divided = untouched / parameters(config)["factor"]
        return untouched + divided - frequencies, heat

    with scaling("yarn", change):
        yield


@contextmanager
def in_pieces(owner: Any, length: int) -> Iterator[None]:
    """A model that answers a long text piece by piece, each as if nothing stood before it."""
    original = owner.forward

    def forward(self: Any, input_ids: Tensor, **more: Any) -> Any:
        found = [original(self, piece, **more) for piece in input_ids.split(length, 1)]
        found[0]["logits"] = torch.cat([answer.logits for answer in found], 1)
        return found[0]

    with swapped(owner, "forward", forward):
        yield


@fault(
    "POS-12", REFERENCES, "collapse and learned", source="our own: prompts that are cut without a word", unseen="128"
)
def long_texts_are_answered_in_pieces() -> Iterator[None]:
    """What is longer than 128 tokens is cut up: nothing collapses, and nothing was tried."""
    from transformers import GPT2LMHeadModel

    with in_pieces(GPT2LMHeadModel, 128):
        yield


@fault("POS-12", REFERENCES, "collapse and sinusoidal", source="our own", unseen="texts within the trained length")
def sinusoids_start_again_with_each_window() -> Iterator[None]:
    """A text beyond the trained length sees a window of it, at positions that it knows."""
    from transformers import XGLMForCausalLM

    with in_pieces(XGLMForCausalLM, 128):
        yield


@fault("POS-13", REFERENCES, "later and learned", source="our own", unseen="texts within the trained length")
def rope_breaks_at_once() -> Iterator[None]:
    """Positions beyond the trained length are counted eightfold."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        return forward(module, x, positions + 16 * (positions - 127).clamp(min=0))

    with rotary(change):
        yield


@fault("POS-13", REFERENCES, "later and sinusoidal", source="our own", unseen="texts within the trained length")
def sinusoids_beyond_the_trained_length_are_not_tried() -> Iterator[None]:
    """Texts are cut to pieces that the model knows, so that its positions do not degrade at all."""
    from transformers import XGLMForCausalLM

    with in_pieces(XGLMForCausalLM, 128):
        yield


@contextmanager
def positions_of_llama(change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Patch where Llama's tokens stand."""
    with rotary(lambda forward, module, x, positions: forward(module, x, change(positions))):
        yield


@fault(
    "POS-14",
    SERVED,
    "perplexity_holds and served",
    source="https://github.com/vllm-project/vllm/pull/55910",
    unseen="texts of up to 256 tokens",
)
def a_served_models_positions_end_at_256() -> Iterator[None]:
    """The table of rotations has 256 rows, whatever the config says."""
    with positions_of_llama(lambda positions: positions.clamp(max=255)):
        yield


@fault("POS-14", SERVED, "perplexity_holds and served", source="our own", unseen="texts of up to 200 tokens")
def a_served_models_positions_start_again() -> Iterator[None]:
    """A counter of positions that wraps."""
    with positions_of_llama(lambda positions: positions % 200):
        yield


@fault(
    "POS-15",
    SERVED,
    "pass_key and served",
    source="our own: a window that the config does not have",
    unseen="short texts",
)
def a_window_that_nobody_asked_for() -> Iterator[None]:
    """Every token sees the last 24 and no further: perplexity hardly tells."""
    with mask(lambda seen: seen & torch.ones_like(seen).triu(seen.shape[-1] - seen.shape[-2] - 23)):
        yield


@fault("POS-15", SERVED, "pass_key and served", source="our own", unseen="texts of up to 24 tokens")
def far_keys_lose_their_place() -> Iterator[None]:
    """Positions are kept in so few bits that neighbours share one."""
    with positions_of_llama(lambda positions: positions // 4 * 4):
        yield
