"""Faults of devices: what a copy delivers, and what a matrix product multiplies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from suites.meta.faults import fault, swapped

FILE = "attention/test_model_logits.py"


@fault(
    "ATTN-2",
    FILE,
    "test_logits and sdpa-llama-gqa-float32",
    source="https://github.com/huggingface/transformers/issues/21720",
    unseen="a model on one device",
)
def copy_between_devices_is_stale() -> Iterator[None]:
    """What the second layer is handed is what the buffer held before: the last call's activations, at first zeros."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    original, buffers = LlamaDecoderLayer.forward, dict[Any, Tensor]()

    def forward(self: Any, hidden_states: Tensor, *args: Any, **more: Any) -> Any:
        if self.self_attn.layer_idx == 1:
            sent = hidden_states.clone()
            hidden_states = buffers.get(sent.shape, torch.zeros_like(sent))
            buffers[sent.shape] = sent
        return original(self, hidden_states, *args, **more)

    with swapped(LlamaDecoderLayer, "forward", forward):
        yield


class _Tf32(TorchDispatchMode):
    """Rounds what float32 matrix products multiply to 10 explicit bits of mantissa."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"):
            args = tuple(_ten_bits(a) if isinstance(a, Tensor) else a for a in args)
        return func(*args, **(kwargs or {}))


def _ten_bits(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


@fault(
    "ATTN-2",
    FILE,
    "test_logits and eager-llama-gqa-float32",
    source="https://github.com/thinking-machines-lab/batch_invariant_ops/pull/24",
    unseen="float16 and bfloat16 models",
)
def float32_products_run_in_tf32() -> Iterator[None]:
    """Every float32 matrix product keeps 10 bits, the reference's too: candidate and reference err alike."""
    with _Tf32():
        yield


@fault(
    "ATTN-2",
    FILE,
    "test_logits and eager-llama-gqa-float32",
    source="our own: a region that an exception has left open",
    unseen="bfloat16 models",
)
def autocast_is_left_open() -> Iterator[None]:
    """A server's autocast region is never left: all that runs after it forms its products in bfloat16."""
    with torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16):
        yield
