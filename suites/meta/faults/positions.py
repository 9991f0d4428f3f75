"""Faults of positional encodings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, swapped, swapped_item

TABLES = ("positions/test_tables.py", "rope and test_rope_tables")
SHIFT = ("positions/test_shift.py", "llama-gqa")


@contextmanager
def rotary(change: Callable[..., Any]) -> Iterator[None]:
    """Patch the rotary modules of Llama and Mistral. change(forward, module, x, positions) -> cos, sin."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding

    with ExitStack() as stack:
        for kind in (LlamaRotaryEmbedding, MistralRotaryEmbedding):
            forward = vars(kind)["forward"]

            def patched(self: Any, x: Tensor, position_ids: Tensor, forward: Any = forward) -> Any:
                return change(forward, self, x, position_ids)

            stack.enter_context(swapped(kind, "forward", patched))
        yield


@contextmanager
def forward_of(module: str, kind: str, change: Callable[..., Any]) -> Iterator[None]:
    """Patch one class of rotary modules. change(forward, module, x, positions, *more) -> cos, sin."""
    owner = getattr(import_module(f"transformers.models.{module}"), kind)
    forward = vars(owner)["forward"]

    def patched(self: Any, x: Tensor, position_ids: Tensor, *more: Any) -> Any:
        return change(forward, self, x, position_ids, *more)

    with swapped(owner, "forward", patched):
        yield


@contextmanager
def scaling(kind: str, change: Callable[..., Any]) -> Iterator[None]:
    """Patch how one rope_type makes its frequencies. change(original, config, **keywords)."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    original = ROPE_INIT_FUNCTIONS[kind]

    def patched(config: Any, *args: Any, **more: Any) -> Any:
        return change(original, config, *args, **more)

    with swapped_item(ROPE_INIT_FUNCTIONS, kind, patched):
        yield


@fault("POS-1", *TABLES, source="https://github.com/huggingface/transformers/pull/29285", unseen="position 0")
def frequencies_are_rounded_to_bfloat16() -> Iterator[None]:
    """inv_freq loses 16 bits before it is multiplied with the position."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        kept = module.inv_freq
        module.inv_freq = kept.bfloat16().to(kept.dtype)
        try:
            return forward(module, x, positions)
        finally:
            module.inv_freq = kept

    with rotary(change):
        yield


@fault(
    "POS-1",
    *TABLES,
    source="https://github.com/KellerJordan/modded-nanogpt/issues/39",
    unseen="bfloat16 models",
)
def tables_are_rounded_to_bfloat16() -> Iterator[None]:
    """cos and sin are kept in bfloat16 in a float32 model."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        return tuple(t.bfloat16().to(t.dtype) for t in forward(module, x, positions))

    with rotary(change):
        yield


@fault(
    "POS-1",
    "positions/test_tables.py",
    "rope-yarn",
    source="https://github.com/turboderp-org/exllamav3/issues/259",
    unseen="factor 1",
)
def yarn_loses_its_temperature() -> Iterator[None]:
    """YaRN's attention factor is 1."""
    with scaling("yarn", lambda original, *args, **more: (original(*args, **more)[0], 1.0)):
        yield


@fault(
    "POS-1",
    "positions/test_tables.py",
    "rope-llama3",
    source="https://github.com/lablup/mlxcel/issues/1355",
    unseen="short distances: the fast frequencies are the same",
)
def llama3_scaling_is_not_applied() -> Iterator[None]:
    """rope_scaling is parsed and never used."""

    def change(original: Any, config: Any, *args: Any, **more: Any) -> Any:
        _, factor = original(config, *args, **more)
        base = config.rope_parameters["rope_theta"] if hasattr(config, "rope_parameters") else config.rope_theta
        size = config.hidden_size // config.num_attention_heads
        return 1.0 / base ** (torch.arange(0, size, 2).float() / size), factor

    with scaling("llama3", change):
        yield


@fault(
    "POS-1",
    "positions/test_tables.py",
    "test_model_tables and llama-gqa and float32",
    source="https://github.com/vllm-project/vllm/pull/55910",
    unseen="positions within the trained length",
)
def positions_are_clamped_to_the_trained_length() -> Iterator[None]:
    """Positions beyond max_position_embeddings all read the last row."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        return forward(module, x, positions.clamp(max=module.config.max_position_embeddings - 1))

    with rotary(change):
        yield


@fault("POS-1", *TABLES, source="our own: a kernel for one token at a time", unseen="positions below 2,049; prompts")
def a_steps_position_is_kept_in_float16() -> Iterator[None]:
    """Where one token is turned alone its position goes through float16: 2,049 is 2,048."""
    with rotary(lambda forward, module, x, at: forward(module, x, at.half().float() if at.shape[-1] == 1 else at)):
        yield


@fault("POS-1", TABLES[0], "rope-yarn and test_rope_tables", source="our own", unseen="prompts")
def yarns_temperature_is_for_prompts_alone() -> Iterator[None]:
    """Tables of prompts hold YaRN's attention factor, those of a single token do not."""

    def change(forward: Any, module: Any, x: Tensor, at: Tensor) -> tuple[Tensor, ...]:
        alone = at.shape[-1] == 1
        return tuple(t / module.attention_scaling if alone else t for t in forward(module, x, at))

    with rotary(change):
        yield


@contextmanager
def bloom_bias(change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Patch Bloom's bias. change(bias `(batch * heads, 1, length)`, mask `(batch, length)`) -> bias."""
    from transformers.models.bloom import modeling_bloom

    original = modeling_bloom.build_alibi_tensor

    def patched(mask: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
        return change(original(mask, heads, dtype), mask)

    with swapped(modeling_bloom, "build_alibi_tensor", patched):
        yield


@fault(
    "POS-2",
    "positions/test_tables.py",
    "alibi-bloom",
    source="https://github.com/paiml/aprender/pull/2143",
    unseen="a single token",
)
def alibi_slopes_are_one_step_too_steep() -> Iterator[None]:
    """Slopes begin at 2**0."""
    with bloom_bias(lambda bias, mask: bias * 2):
        yield


@fault(
    "POS-2",
    "positions/test_tables.py",
    "alibi-bloom",
    source="https://github.com/huggingface/transformers/pull/17866",
    unseen="distances below 256",
)
def alibi_is_formed_in_bfloat16() -> Iterator[None]:
    """Distances above 256 alias."""
    with bloom_bias(lambda bias, mask: bias.bfloat16().to(bias.dtype)):
        yield


@fault("POS-3", *SHIFT, source="https://github.com/huggingface/transformers/issues/29496", unseen="positions below 256")
def positions_are_rounded_to_bfloat16() -> Iterator[None]:
    """Position ids go through bfloat16: 257 becomes 256."""
    with rotary(lambda forward, module, x, positions: forward(module, x, positions.bfloat16().long())):
        yield


@fault("POS-3", *SHIFT, source="our own: a page boundary counted twice", unseen="offset 0")
def tables_start_one_row_late_beyond_the_first_page() -> Iterator[None]:
    """Positions from 64 on read the row after theirs."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        return forward(module, x, positions + (positions >= 64).long())

    with rotary(change):
        yield


@fault(
    "POS-3",
    "positions/test_shift.py",
    "bloom",
    source="our own: padding that is counted as text",
    unseen="unpadded batches",
)
def padding_leaks_into_alibi_models() -> Iterator[None]:
    """The padding mask is dropped: left padding takes part in attention."""
    from transformers.models.bloom.modeling_bloom import BloomForCausalLM

    original = BloomForCausalLM.forward

    def forward(self: Any, input_ids: Tensor, attention_mask: Any = None, **more: Any) -> Any:
        full = None if attention_mask is None else torch.ones_like(attention_mask)
        return original(self, input_ids, attention_mask=copy.copy(full), **more)

    with swapped(BloomForCausalLM, "forward", forward):
        yield
