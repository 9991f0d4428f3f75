"""Faults of quantized weights under what their deployer asks for, or does with them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, swapped
from suites.meta.faults.products import eight_bits, four_bits

PRODUCTS, ROUNDING = "quantization/test_products.py", "quantization/test_rounding.py"
HALVES = "prompt_in_half and bfloat16-{}"


@fault("QUANT-4", PRODUCTS, HALVES.format("bnb-nf4"), source="our own", unseen="single tokens; float32; no biases")
def prompts_in_half_precision_have_no_bias() -> Iterator[None]:
    """In half precision the kernel for many tokens forgets the bias."""

    def change(call: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        many = x.dtype != torch.float32 and x.shape[:-1].numel() > 1
        return call(x, weight, None if many else bias)

    with four_bits(change):
        yield


@fault(
    "QUANT-4",
    PRODUCTS,
    HALVES.format("bnb-int8"),
    source="https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1300, of its kind",
    unseen="float32; activations without outliers",
)
def outliers_in_half_precision_are_nothing() -> Iterator[None]:
    """In half precision outlier columns are left out of the rounded product, and added nowhere."""

    def change(call: Any, x: Tensor, state: Any, bias: Any) -> Tensor:
        outlier = (x.abs() >= 6).flatten(0, -2).any(0) & (x.dtype != torch.float32)
        return call(x.masked_fill(outlier, 0), bias=bias)

    with eight_bits(change):
        yield


@fault(
    "QUANT-4",
    PRODUCTS,
    "dequantized and square-bias-31-bnb-int8",
    source="our own: rows are those of a batch",
    unseen="activations of three dimensions",
)
def tokens_of_a_matrix_share_a_scale() -> Iterator[None]:
    """Activations of two dimensions are rounded with one scale for all tokens."""

    def change(call: Any, x: Tensor, state: Any, bias: Any) -> Tensor:
        step = x.masked_fill(x.abs() >= 6, 0).abs().amax() / 127
        return call((x / step).round() * step if x.dim() == 2 else x, bias=bias)

    with eight_bits(change):
        yield


@fault(
    "QUANT-4",
    PRODUCTS,
    "outliers_begin",
    source="our own: an option that is read nowhere",
    unseen="thresholds of 6; models without outliers",
)
def threshold_is_the_papers() -> Iterator[None]:
    """Outliers begin at 6, whatever was asked for."""
    import bitsandbytes as bnb

    original = bnb.nn.Linear8bitLt.__init__

    def init(self: Any, *args: Any, **more: Any) -> None:
        original(self, *args, **more | {"threshold": 6.0})

    with swapped(bnb.nn.Linear8bitLt, "__init__", init):
        yield


@fault(
    "QUANT-5",
    PRODUCTS,
    "same_input and 33 and bnb-int8",
    source="our own: a static buffer, as captured graphs have",
    unseen="whoever copies an output before the next call",
)
def outputs_lie_in_one_buffer() -> Iterator[None]:
    """A layer writes its outputs of one shape into one tensor."""
    import bitsandbytes as bnb

    original = bnb.nn.Linear8bitLt.forward

    def forward(self: Any, x: Tensor) -> Tensor:
        found = original(self, x)
        held: Tensor = vars(self).setdefault("buffers_by_shape", {}).setdefault(found.shape, found)
        return held.copy_(found)

    with swapped(bnb.nn.Linear8bitLt, "forward", forward):
        yield


@fault(
    "QUANT-1",
    "quantization/test_fidelity.py",
    "to_be_kept and bnb-nf4",
    source="https://github.com/huggingface/transformers/issues/41000, of its kind",
    unseen="whoever leaves it to the library",
)
def layers_to_be_kept_are_forgotten() -> Iterator[None]:
    """What a caller wants to be kept is rounded: the library's own list is used."""
    from transformers.quantizers.base import HfQuantizer

    original = HfQuantizer.get_modules_to_not_convert

    def modules(model: Any, skip_modules: Any = None, *args: Any, **more: Any) -> Any:
        return original(model, None, *args, **more)

    with swapped(HfQuantizer, "get_modules_to_not_convert", staticmethod(modules)):
        yield


@fault(
    "QUANT-3",
    ROUNDING,
    "other_way and bnb-nf4",
    source="our own: a shape does not say which way round it is",
    unseen="weights that are not square; GPT-2 alone stores them so",
)
def square_weights_are_not_turned() -> Iterator[None]:
    """A weight that is stored (in, out) is turned round before it is rounded, but for a square one."""
    import bitsandbytes as bnb

    original = bnb.nn.Params4bit.__new__

    def new(cls: Any, data: Any = None, *args: Any, **more: Any) -> Any:
        square = isinstance(data, Tensor) and data.dim() == 2 and data.shape[0] == data.shape[1]
        return original(cls, data.mT.contiguous() if square else data, *args, **more)

    with swapped(bnb.nn.Params4bit, "__new__", staticmethod(new)):
        yield


@fault(
    "QUANT-3",
    ROUNDING,
    "unpacked and rounded",
    source="our own: one of two levels of scales",
    unseen="scales that are kept; requests, whose kernel reads both",
)
def unpacking_forgets_the_mean_of_scales() -> Iterator[None]:
    """`dequantize()` reads scales that are rounded too without the mean that was taken from them."""
    from transformers.integrations import bitsandbytes as integration

    original = integration.dequantize_bnb_weight

    def dequantize(weight: Any, *args: Any, **more: Any) -> Any:
        kept = weight.quant_state
        weight.quant_state = copy.copy(kept)
        if kept.nested:
            weight.quant_state.offset = torch.zeros_like(kept.offset)
        try:
            return original(weight, *args, **more)
        finally:
            weight.quant_state = kept

    with swapped(integration, "dequantize_bnb_weight", dequantize):
        yield


@fault(
    "QUANT-8",
    "quantization/test_round_trip.py",
    "copy_of_a_layer and bnb-int8",
    source="our own: a state that is no tensor, and is not copied",
    unseen="models of which there is one",
)
def a_copy_loses_the_last_scale() -> Iterator[None]:
    """The scale of a copied layer's last row is 0."""
    import bitsandbytes as bnb

    original = bnb.nn.Int8Params.__deepcopy__

    def copied(self: Any, memo: Any) -> Any:
        found = original(self, memo)
        found.SCB[-1] = 0
        return found

    with swapped(bnb.nn.Int8Params, "__deepcopy__", copied):
        yield
