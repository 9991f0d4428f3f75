"""Faults of quantizers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, swapped

NF4 = ("quantization/test_fidelity.py", "nf4 and llama-gqa")
INT8 = ("quantization/test_fidelity.py", "int8 and served")
UNTIED = ("quantization/test_fidelity.py", "nf4 and mistral")
AGREEMENT = ("quantization/test_agreement.py", "nf4")


@contextmanager
def _four_bit(change: Callable[[Tensor, Any], tuple[Tensor, Any]]) -> Iterator[None]:
    """Patch what a 4-bit layer multiplies with. change(packed, state) -> packed, state."""
    import bitsandbytes as bnb
    from bitsandbytes.nn import modules

    original, forward = bnb.matmul_4bit, modules.Linear4bit.forward

    def matmul(x: Tensor, packed: Tensor, quant_state: Any, *args: Any, **more: Any) -> Tensor:
        packed, state = change(packed, copy.copy(quant_state))
        return original(x, packed, *args, quant_state=state, **more)

    def plain(self: Any, x: Tensor) -> Tensor:
        self.support_avx512bf16_for_cpu = False  # the repacked path does not read the state
        return forward(self, x)

    with swapped(bnb, "matmul_4bit", matmul), swapped(modules.Linear4bit, "forward", plain):
        yield


@fault("QUANT-1", *NF4, source="https://github.com/kekzl/imp/pull/722", unseen="never")
def nibbles_are_swapped() -> Iterator[None]:
    """Low and high nibble are exchanged: neighbouring weights change places."""

    def change(packed: Tensor, state: Any) -> tuple[Tensor, Any]:
        b = packed.data.view(torch.uint8)
        return ((b << 4) | (b >> 4)).to(torch.uint8), state

    with _four_bit(change):
        yield


@fault("QUANT-1", *NF4, source="https://github.com/deepspeedai/DeepSpeed/pull/3433", unseen="constant scales")
def scales_belong_to_the_next_block() -> Iterator[None]:
    """Each block is scaled with its neighbour's absmax."""

    def change(packed: Tensor, state: Any) -> tuple[Tensor, Any]:
        state.absmax = state.absmax.roll(1)
        return packed, state

    with _four_bit(change):
        yield


@fault("QUANT-1", *NF4, source="https://github.com/NVIDIA/Model-Optimizer/issues/1173", unseen="accuracy: it is better")
def half_of_the_layers_are_left_out() -> Iterator[None]:
    """The quantizer discovers only part of the layers."""
    with _not_converted(lambda names: [*names, "gate_proj", "up_proj", "down_proj"]):
        yield


@fault("QUANT-2", *AGREEMENT, source="https://github.com/NVIDIA/Model-Optimizer/issues/1173", unseen="agreement alone")
def feed_forward_layers_are_left_out() -> Iterator[None]:
    """As above, on the served model, where it makes agreement better."""
    with _not_converted(lambda names: [*names, "gate_proj", "up_proj", "down_proj"]):
        yield


@fault(
    "QUANT-1",
    *UNTIED,
    source="https://github.com/bitsandbytes-foundation/bitsandbytes/pull/1865",
    unseen="accuracy: it is within quantization's noise",
)
def head_is_quantized_too() -> Iterator[None]:
    """The list of modules to keep is empty."""
    with _not_converted(lambda names: []):
        yield


@contextmanager
def _not_converted(change: Callable[[list[str]], list[str]]) -> Iterator[None]:
    """Patch which modules transformers' quantizers leave alone."""
    from transformers.quantizers.base import HfQuantizer

    original = vars(HfQuantizer)["get_modules_to_not_convert"].__func__

    def patched(*args: Any, **more: Any) -> list[str]:
        return change(list(original(*args, **more) or []))

    with swapped(HfQuantizer, "get_modules_to_not_convert", staticmethod(patched)):
        yield


@fault("QUANT-1", *INT8, source="https://github.com/vllm-project/vllm/pull/10657", unseen="activations below 6")
def outlier_threshold_is_zero() -> Iterator[None]:
    """Outlier features are quantized with everything else."""
    import bitsandbytes as bnb

    original = bnb.matmul

    def matmul(*args: Any, state: Any = None, threshold: float = 0.0, **more: Any) -> Tensor:
        kept, state.threshold = state.threshold, 0.0
        try:
            return original(*args, state=state, threshold=0.0, **more)
        finally:
            state.threshold = kept

    with swapped(bnb, "matmul", matmul):
        yield


@fault("QUANT-2", *AGREEMENT, source="https://github.com/henrywoo/pyllama/issues/58", unseen="constant scales")
def scales_are_a_quarter_too_large() -> Iterator[None]:
    """Every block's absmax is 25 % too large."""

    def change(packed: Tensor, state: Any) -> tuple[Tensor, Any]:
        state.absmax = state.absmax * 1.25
        return packed, state

    with _four_bit(change):
        yield
