"""Faults of caches that round what they keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, patches, swapped

COSTS = "kv_cache/test_quantized.py"
KEPT = (COSTS, "costs and steps and fp8")
GROUPS = (COSTS, "costs and steps and hqq-int4")
LOGITS = (COSTS, "logits and hqq-int8")
AGAIN = ("kv_cache/test_reuse.py", "again and hqq-int4")
ORDERED = ("kv_cache/test_beams.py", "reordered and hqq-int4")
BYTES = (COSTS, "bytes and steps-float32-hqq-int4")
ASKED = (COSTS, "asked_for and hqq-int4")


def never_rounds_again(update: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
    """The residual is compared with the length of the call, which is 1 from the second call on."""
    kept = layer.residual_length
    layer.residual_length = 1 << 60 if layer.is_initialized and k.shape[-2] <= kept else kept
    try:
        return update(layer, k, v, *args, **more)
    finally:
        layer.residual_length = kept


@fault("KV-21", *KEPT, source="https://github.com/vllm-project/vllm/pull/11688", unseen="numbers of order one")
def float8_scale_is_one() -> Iterator[None]:
    """Scales are not loaded: float8 without any, which saturates at 448 and has no bits left below 2**-9."""

    def change(quantize: Any, layer: Any, tensor: Tensor, scale: Any = None) -> Any:
        return quantize(layer, tensor, torch.ones((), device=tensor.device))

    with patches.layers(change, "Fp8QuantizedLayer", method="_quantize"):
        yield


@fault(
    "KV-21",
    *GROUPS,
    source="https://github.com/rajveer43/VeloxQuant-MLX/issues/86",
    unseen="prompts; outputs, which are better than they should be",
)
def decoded_tokens_are_never_rounded() -> Iterator[None]:
    """Tokens that come one at a time stay in full precision for ever."""
    with patches.layers(never_rounds_again, "QuantizedLayer"):
        yield


@fault("KV-21", *GROUPS, source="https://github.com/vllm-project/vllm/pull/38966", unseen="symmetric rounding")
def zero_points_of_values_are_off_by_one() -> Iterator[None]:
    """Values are read back one step too high."""

    def change(dequantize: Any, layer: Any, found: Any) -> Tensor:
        codes, meta = found
        return dequantize(layer, (codes, meta | {"zero": meta["zero"] - 1}))

    with patches.layers(change, "HQQQuantizedLayer", method="_dequantize"):
        yield


@fault("KV-22", *LOGITS, source="https://github.com/NVIDIA/kvpress/issues/27", unseen="a prompt alone")
def length_is_that_of_the_residual() -> Iterator[None]:
    """The cache counts the tokens that are not rounded yet, and positions start over."""

    def length(self: Any) -> int:
        return 0 if self.keys is None or self.keys.dim() < 4 else int(self.keys.shape[-2])

    from transformers.cache_utils import DynamicLayer, QuantizedLayer

    owner = next(kind for kind in QuantizedLayer.__mro__ if "get_seq_length" in vars(kind))
    with swapped(QuantizedLayer if owner is DynamicLayer else owner, "get_seq_length", length):
        yield


@fault("KV-22", *LOGITS, source="our own: groups in another order than they were written in", unseen="batch 1")
def rounded_rows_are_another_rows() -> Iterator[None]:
    """What was rounded is read back for the next row of the batch."""

    def change(dequantize: Any, layer: Any, found: Any) -> Tensor:
        rows: Tensor = dequantize(layer, found)
        return rows.roll(1, 0)

    with patches.layers(change, "HQQQuantizedLayer", method="_dequantize"):
        yield


@fault("KV-23", *BYTES, source="https://github.com/rajveer43/VeloxQuant-MLX/issues/86", unseen="logits; prompts")
def decoded_tokens_stay_whole() -> Iterator[None]:
    """Tokens that come one at a time are never rounded, and take their full bytes."""
    with patches.layers(never_rounds_again, "QuantizedLayer"):
        yield


@fault("KV-23", *BYTES, source="our own: keys are kept for the next rounding", unseen="logits")
def rounded_keys_are_kept_whole_too() -> Iterator[None]:
    """The keys that were rounded stay beside their codes."""

    def change(quantize: Any, layer: Any, tensor: Tensor, *args: Any, **more: Any) -> Any:
        layer.exact = tensor
        return quantize(layer, tensor, *args, **more)

    with patches.layers(change, "HQQQuantizedLayer", method="_quantize"):
        yield


@fault("KV-10", *AGAIN, source="our own: what a new field holds is not reset", unseen="the first request")
def reset_leaves_what_was_rounded() -> Iterator[None]:
    """A reset drops what is not rounded yet, and the count of tokens; what was rounded stays, and is handed on."""

    def change(reset: Any, layer: Any) -> None:
        if not layer.is_initialized:
            return
        none = torch.tensor([], dtype=layer.keys.dtype, device=layer.keys.device)
        layer.keys, layer.values, layer.cumulative_length = none, none, 0

    with patches.layers(change, "QuantizedLayer", method="reset"):
        yield


@fault("KV-8", *ORDERED, source="our own: an order that replaces the one that waits", unseen="a single order")
def second_waiting_order_replaces_the_first() -> Iterator[None]:
    """Of the orders that come before what was rounded is rounded again, only the last is applied."""

    def change(reorder: Any, layer: Any, order: Tensor) -> None:
        layer._pending_beam_idx = None
        reorder(layer, order)

    with patches.layers(change, "QuantizedLayer", method="reorder_cache"):
        yield


@fault("KV-8", ORDERED[0], "reordered and fp8", source="our own: one of two lines", unseen="greedy decoding; keys")
def rounded_values_do_not_follow() -> Iterator[None]:
    """Where beams are reordered, the keys in float8 follow, and the values stay."""

    def change(reorder: Any, layer: Any, order: Tensor) -> None:
        values = layer._quantized_values
        reorder(layer, order)
        layer._quantized_values = values

    with patches.layers(change, "Fp8QuantizedLayer", method="reorder_cache"):
        yield


@fault(
    "KV-23", *ASKED, source="https://github.com/huggingface/transformers/pull/48700, before it", unseen="one request"
)
def settings_of_a_cache_are_consumed() -> Iterator[None]:
    """`generate` takes the backend out of the caller's cache_config: who asks with it again gets the default."""

    def change(original: Any, model: Any, config: Any, *args: Any, **more: Any) -> Any:
        found = original(model, config, *args, **more)
        config.cache_config.pop("backend", None)
        return found

    with patches.generation("_prepare_cache_for_generation", change):
        yield


@fault(
    "KV-23",
    *ASKED,
    source="https://github.com/huggingface/transformers/issues/46424, of another cache",
    unseen="caches that are made by hand",
)
def settings_of_a_cache_are_ignored() -> Iterator[None]:
    """`generate` makes a cache of the backend that was asked for, with bits and groups by default."""

    def change(original: Any, model: Any, config: Any, *args: Any, **more: Any) -> Any:
        config.cache_config = {"backend": config.cache_config["backend"]}
        return original(model, config, *args, **more)

    with patches.generation("_prepare_cache_for_generation", change):
        yield
