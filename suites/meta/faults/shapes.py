"""Faults of shapes: a call that is in order is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from suites.meta.faults import fault, patches

FILE = ("attention/test_shapes.py", "sdpa-float32")


@fault(
    "ATTN-20",
    *FILE,
    source="https://github.com/pytorch/pytorch/pull/185349",
    unseen="prompts of 128 tokens or more, one key head a query head",
)
def short_grouped_prompts_have_no_kernel() -> Iterator[None]:
    """Queries that share a key head are packed into one tile, and none is as large as a short prompt's."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        packed = 1 << (q.shape[-2] * (q.shape[1] // k.shape[1]) - 1).bit_length()
        if q.shape[-2] < 128 < packed:
            raise RuntimeError("no choices exist for backend")
        return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault("ATTN-20", *FILE, source="our own: a grid dimension that is too small", unseen="batches of up to 64")
def large_batches_are_refused() -> Iterator[None]:
    """A launch of more than 64 sequences is an invalid configuration."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        if len(q) > 64:
            raise RuntimeError("CUDA error: invalid configuration argument")
        return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault("ATTN-20", *FILE, source="our own: an output that is not cut back", unseen="heads in a multiple of eight")
def heads_are_padded_to_eight() -> Iterator[None]:
    """Heads are padded to a multiple of eight, and so is the output."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        out = call(q, k, v, **more)
        return out if q.shape[1] % 8 == 0 else out.new_zeros(len(q), -(-q.shape[1] // 8) * 8, *q.shape[2:])

    with patches.kernel(change):
        yield
