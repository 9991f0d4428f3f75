"""Faults of batches: rows of different lengths, padded on a side, and the cached step that follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, patches, swapped

FILE = "attention/test_model_logits.py"
ROWS = (FILE, "row_of_a_batch and left and sdpa-llama-gqa-float32")


@fault(
    "ATTN-16", *ROWS, source="https://github.com/huggingface/transformers/pull/41966", unseen="batches without padding"
)
def causality_is_lost_under_padding() -> Iterator[None]:
    """is_causal is set where there is no mask, and a mask that is there hides padding only."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        if mask is not None and q.shape[2] > 1:
            seen = patches.shown(q, k, {"attn_mask": mask})
            mask = seen.any(-2, keepdim=True).expand_as(seen)
        return call(module, q, k, v, mask, **more)

    with patches.interface(change):
        yield


@fault(
    "ATTN-16",
    FILE,
    "row_of_a_batch and step and sdpa-mistral-window-float32",
    source="https://github.com/karpathy/nanochat/pull/456",
    unseen="prompts; caches that drop old tokens themselves",
)
def window_is_ignored_in_the_step() -> Iterator[None]:
    """A single query sees every key that is cached, window or not."""
    from transformers import masking_utils

    def change(build: Any, keywords: dict[str, Any]) -> Any:
        if keywords["q_length"] == 1:
            keywords["mask_function"] = masking_utils.causal_mask_function
            keywords.pop("local_size", None)
        return build(**keywords)

    with patches.masks(change):
        yield


@fault("ATTN-16", *ROWS, source="our own: decoding taken to see all", unseen="batches without padding; prompts")
def padding_is_forgotten_in_the_step() -> Iterator[None]:
    """A single query sees every slot that is cached, padding too."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        return call(module, q, k, v, None if q.shape[2] == 1 else mask, **more)

    with patches.interface(change):
        yield


@fault("ATTN-16", *ROWS, source="our own: a mask that is built once for the batch", unseen="rows of one length")
def rows_are_padded_like_the_first() -> Iterator[None]:
    """Padding is hidden where row 0 has it."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        return call(module, q, k, v, mask if mask is None else mask[:1].expand_as(mask), **more)

    with patches.interface(change):
        yield


@fault(
    "ATTN-16",
    FILE,
    "row_of_a_batch and left and sdpa-bigcode-mqa-float32",
    source="our own: position_ids that are not handed on",
    unseen="RoPE and ALiBi, which know distances only; padding on the right",
)
def padding_counts_as_positions() -> Iterator[None]:
    """Positions count a row's slots, those before its first token too."""
    from transformers.models.gpt_bigcode.modeling_gpt_bigcode import GPTBigCodeModel

    original = GPTBigCodeModel.forward

    def forward(self: Any, *args: Any, **more: Any) -> Any:
        return original(self, *args, **more | {"position_ids": None})

    with swapped(GPTBigCodeModel, "forward", forward):
        yield


@fault("ATTN-16", *ROWS, source="https://github.com/huggingface/transformers/pull/46765", unseen="finite activations")
def padding_spreads_nan() -> Iterator[None]:
    """Queries that are padding come out NaN; their keys and values then poison real rows in the next layer."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        out, weights = call(module, q, k, v, mask, **more)
        if mask is not None and q.shape[2] == k.shape[2]:
            own = patches.shown(q, k, {"attn_mask": mask}).diagonal(dim1=-2, dim2=-1)[:, 0]
            out = out.masked_fill(~own[:, :, None, None], torch.nan)
        return out, weights

    with patches.interface(change):
        yield


@fault(
    "KV-4",
    "kv_cache/test_batches.py",
    "told_in_any_dtype and bools-float32-bigcode-mqa",
    source="our own: a test of a dtype",
    unseen="masks of numbers; RoPE and ALiBi, which know distances only",
)
def masks_of_bools_leave_positions_to_slots() -> Iterator[None]:
    """`generate` counts a row's positions by a mask of numbers, and by slots where it is of bools."""

    def change(original: Any, model: Any, ids: Any, *args: Any, **more: Any) -> Any:
        prepared = original(model, ids, *args, **more)
        mask, positions = prepared.get("attention_mask"), prepared.get("position_ids")
        if mask is not None and mask.dtype == torch.bool and positions is not None:
            slots = torch.arange(mask.shape[-1] - positions.shape[-1], mask.shape[-1], device=positions.device)
            prepared["position_ids"] = slots.expand_as(positions)
        return prepared

    with patches.generation("prepare_inputs_for_generation", change):
        yield
