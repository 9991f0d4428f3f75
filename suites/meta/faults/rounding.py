"""Faults of quantizers in how weights are rounded and read back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import after_loading, fault, swapped

FILE = "quantization/test_rounding.py"
FULL = ("--tier", "full")
NF4 = (FILE, "textbook and bnb-nf4 and outlier-rows")
INT8 = (FILE, "textbook and bnb-int8 and outlier-rows")
DOUBLE = (FILE, "textbook and magnitudes-bnb-nf4-double and not float16")
INT4 = (FILE, "textbook and quanto-int4 and outlier-rows")
LOADED = (FILE, "every_layer and {}-llama-gqa")


def _quantizing(change: Callable[..., tuple[Tensor, Any]]) -> AbstractContextManager[None]:
    """Patch how bitsandbytes quantizes to 4 bits. change(call, weight, **how) -> packed, state."""
    import bitsandbytes as bnb

    original = bnb.functional.quantize_4bit
    return swapped(bnb.functional, "quantize_4bit", lambda weight, **how: change(original, weight, **how))


def _reading(change: Callable[[Tensor, Any], tuple[Tensor, Any]]) -> AbstractContextManager[None]:
    """Patch how bitsandbytes reads 4 bits. change(packed, state) -> packed, state."""
    import bitsandbytes as bnb

    original = bnb.functional.dequantize_4bit

    def read(packed: Tensor, state: Any, *args: Any, **more: Any) -> Tensor:
        return original(*change(packed, copy.copy(state)), *args, **more)

    return swapped(bnb.functional, "dequantize_4bit", read)


@fault("QUANT-3", *NF4, source="https://github.com/henrywoo/pyllama/issues/58", unseen="a look at bytes and classes")
def weights_are_rounded_to_the_other_code_book() -> Iterator[None]:
    """Codes are chosen from fp4's book, and read with nf4's."""

    def change(call: Any, weight: Tensor, **how: Any) -> tuple[Tensor, Any]:
        packed, state = call(weight, **how | {"quant_type": "fp4"})
        state.quant_type, state.code = "nf4", call(weight[:1], **how)[1].code
        return packed, state

    with _quantizing(change):
        yield


@fault("QUANT-3", *NF4, source="https://github.com/deepspeedai/DeepSpeed/pull/3433", unseen="constant scales")
def weights_are_read_with_the_next_blocks_scale() -> Iterator[None]:
    """Each block is read with its neighbour's absmax."""

    def change(packed: Tensor, state: Any) -> tuple[Tensor, Any]:
        state.absmax = state.absmax.roll(1)
        return packed, state

    with _reading(change):
        yield


@fault("QUANT-3", *NF4, source="our own: a debugging option", unseen="thresholds on accuracy: it is better")
def blocks_are_half_as_large() -> Iterator[None]:
    """Blocks of 32 in place of 64: twice the scales, and less error than the scheme has."""
    with _quantizing(lambda call, weight, **how: call(weight, **how | {"blocksize": 32})):
        yield


@fault("QUANT-3", *NF4, source="our own: scales that were saved in half precision", unseen="thresholds on accuracy")
def scales_are_kept_in_bfloat16() -> Iterator[None]:
    """absmax is rounded to bfloat16: 0.2 % of each weight."""

    def change(call: Any, weight: Tensor, **how: Any) -> tuple[Tensor, Any]:
        packed, state = call(weight, **how)
        state.absmax = state.absmax.to(torch.bfloat16).float()
        return packed, state

    with _quantizing(change):
        yield


@fault(
    "QUANT-3",
    FILE,
    "textbook and bnb-nf4 and last-block",
    source="https://github.com/bitsandbytes-foundation/bitsandbytes/pull/1884",
    unseen="sizes that are multiples of a block",
)
def the_last_block_has_the_scale_before_it() -> Iterator[None]:
    """A last block that is not full is read with the scale of the block before."""

    def change(packed: Tensor, state: Any) -> tuple[Tensor, Any]:
        state.absmax = state.absmax.clone()
        state.absmax[-1] = state.absmax[-2]
        return packed, state

    with _reading(change):
        yield


@fault(
    "QUANT-3",
    FILE,
    "textbook and bnb-nf4 and tall",
    source="https://github.com/huggingface/optimum-quanto/pull/409",
    unseen="layers of less than 65,536 rows",
)
def rows_beyond_65535_are_the_first_ones_again() -> Iterator[None]:
    """A row index of 16 bits wraps."""
    import bitsandbytes as bnb

    original = bnb.functional.dequantize_4bit

    def read(*args: Any, **more: Any) -> Tensor:
        weight = original(*args, **more)
        weight[2**16 :] = weight[: max(0, len(weight) - 2**16)]
        return weight

    with swapped(bnb.functional, "dequantize_4bit", read):
        yield


@fault(
    "QUANT-3",
    *DOUBLE,
    options=FULL,
    source="https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1527",
    unseen="without double quantization",
)
def offset_of_double_quantization_is_lost() -> Iterator[None]:
    """The mean of the scales is not added back."""

    def change(packed: Tensor, state: Any) -> tuple[Tensor, Any]:
        if state.nested:
            state.offset = torch.zeros_like(state.offset)
        return packed, state

    with _reading(change):
        yield


@fault("QUANT-3", *DOUBLE, options=FULL, source="our own: an index by the first level's block", unseen="a few scales")
def second_scales_belong_to_the_next_256_blocks() -> Iterator[None]:
    """Double quantization's own scales are read from the neighbour."""

    def change(packed: Tensor, state: Any) -> tuple[Tensor, Any]:
        if state.nested:
            state.state2 = copy.copy(state.state2)
            state.state2.absmax = state.state2.absmax.roll(1)
        return packed, state

    with _reading(change):
        yield


@fault("QUANT-3", *INT8, source="our own: a cast in place of a rounding", unseen="the largest weight of each row")
def codes_are_cut_off_and_not_rounded() -> Iterator[None]:
    """Casting to int8 truncates towards zero."""
    import bitsandbytes as bnb

    original = bnb.functional.int8_vectorwise_quant

    def truncating(x: Tensor, *args: Any, **more: Any) -> Any:
        _, scale, outliers = original(x, *args, **more)
        exact = x.float() * (127 / scale[:, None])
        return exact.trunc().to(torch.int8), scale, outliers

    with swapped(bnb.functional, "int8_vectorwise_quant", truncating):
        yield


@fault(
    "QUANT-3",
    FILE,
    "textbook and quanto-int8 and outlier-rows",
    source="https://github.com/AutoGPTQ/AutoGPTQ/issues/188",
    unseen="rows of equal magnitude",
)
def one_scale_serves_all_rows() -> Iterator[None]:
    """A scale a tensor where a scale a row is meant."""
    from optimum.quanto.tensor.optimizers.absmax_optimizer import AbsmaxOptimizer

    original = AbsmaxOptimizer.optimize

    def optimize(self: Any, base: Tensor, *args: Any, **more: Any) -> Tensor:
        scale = original(self, base, *args, **more)
        return torch.full_like(scale, float(scale.max()))

    with swapped(AbsmaxOptimizer, "optimize", optimize):
        yield


@fault(
    "QUANT-3",
    *INT4,
    options=FULL,
    source="https://github.com/vllm-project/vllm/pull/38966",
    unseen="symmetric kernels that ignore zeros",
)
def zero_point_is_off_by_one() -> Iterator[None]:
    """Every weight is shifted by one step."""

    def change(scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        return scale, shift + scale

    with _affine(change):
        yield


@fault("QUANT-3", *INT4, options=FULL, source="our own: 2 ** bits for 2 ** bits - 1", unseen="8 bits, nearly")
def the_greatest_code_is_never_used() -> Iterator[None]:
    """Steps are counted for 16 codes and not for the 15 steps between them: the range is not filled."""
    from optimum.quanto.tensor.optimizers.max_optimizer import MaxOptimizer

    original = MaxOptimizer.optimize

    def optimize(self: Any, *args: Any, **more: Any) -> tuple[Tensor, Tensor]:
        scale, shift = original(self, *args, **more)
        return scale * 15 / 14, shift

    with swapped(MaxOptimizer, "optimize", optimize):
        yield


def _affine(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> AbstractContextManager[None]:
    """Patch how quanto reads less than 8 bits. change(scale, shift) -> scale, shift."""
    from importlib import import_module

    qbits = import_module("optimum.quanto.tensor.qbits")  # the package's attribute is another module
    original = qbits.QBitsDequantizer.forward

    def forward(ctx: Any, tensor: Any) -> Tensor:
        read = copy.copy(tensor)
        read._scale, read._shift = change(tensor._scale, tensor._shift)
        return original(ctx, read)

    return swapped(qbits.QBitsDequantizer, "forward", staticmethod(forward))


@fault(
    "QUANT-3",
    LOADED[0],
    LOADED[1].format("bnb-nf4"),
    source="our own: a shard that begins in the middle of a layer",
    unseen="layers that are quantized alone, and a model's accuracy",
)
def scales_behind_a_shards_edge_are_the_neighbours() -> Iterator[None]:
    """The last eighth of one layer's scales is shifted by a block when the model is loaded."""

    def change(model: Any) -> None:
        state = getattr(_last_down(model).weight, "quant_state", None)
        if state is not None:
            behind = state.absmax[-len(state.absmax) // 8 :]
            behind.copy_(behind.roll(1))

    with after_loading(change):
        yield


@fault(
    "QUANT-3",
    LOADED[0],
    LOADED[1].format("bnb-int8"),
    source="our own: a scale that was fused into one layer twice",
    unseen="layers that are quantized alone, and a model's accuracy",
)
def scales_of_one_loaded_layer_are_too_large() -> Iterator[None]:
    """Every scale of one layer of a loaded model is 5 % too large."""

    def change(model: Any) -> None:
        scale = getattr(_last_down(model).weight, "SCB", None)
        if scale is not None:
            scale.mul_(1.05)

    with after_loading(change):
        yield


@fault(
    "QUANT-3",
    LOADED[0],
    LOADED[1].format("bnb-nf4"),
    source="our own: a loader that casts to the dtype of most checkpoints",
    unseen="layers that are quantized alone, and checkpoints in bfloat16",
)
def checkpoint_is_cast_before_it_is_rounded() -> Iterator[None]:
    """A float32 checkpoint is cast to bfloat16 on its way, and codes are made of what is left."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls: Any, *args: Any, **more: Any) -> Any:
        with _quantizing(lambda call, weight, **how: call(weight.to(torch.bfloat16).to(weight.dtype), **how)):
            return original(cls, *args, **more)

    with swapped(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)):
        yield


def _last_down(model: Any) -> Any:
    """The last layer's down projection, of a Llama."""
    return model.model.layers[-1].mlp.down_proj
