"""Faults of layout and shape: a kernel that walks memory by other strides than a tensor's, or beyond its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, patches

PLAIN = ("attention/test_layout.py", "changes_nothing and not under_a_mask and sdpa-float32 and causal-100")
MASKED = ("attention/test_layout.py", "changes_nothing_under_a_mask and sdpa-float32 and padding-100")
MISFITS = ("attention/test_layout.py", "do_not_fit and sdpa-float32")


def _walked(t: Tensor, strides: Sequence[int], offset: int) -> Tensor:
    """What a kernel finds that walks a tensor's memory by these strides; beyond the end it starts again."""
    memory = t.as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)
    where = torch.tensor(offset, device=t.device)
    for size, stride in zip(t.shape, strides, strict=True):
        where = where[..., None] + torch.arange(size, device=t.device) * stride
    return memory[where % len(memory)]


def _packed(t: Tensor) -> tuple[int, ...]:
    """The strides that a contiguous tensor of this shape has."""
    return torch.empty(t.shape, device="meta").stride()


@fault(
    "ATTN-11",
    *MASKED,
    source="https://github.com/pytorch/pytorch/issues/112577",
    unseen="no mask; contiguous tensors, as a cache returns them",
)
def strides_are_ignored_under_a_mask() -> Iterator[None]:
    """With a mask, q, k and v are read as if they were contiguous."""

    def change(call: Any, *qkv: Tensor, **more: Any) -> Tensor:
        if more.get("attn_mask") is not None:
            qkv = tuple(t if 0 in t.stride() else _walked(t, _packed(t), t.storage_offset()) for t in qkv)
        return call(*qkv, **more)

    with patches.kernel(change):
        yield


@fault(
    "ATTN-11",
    *MASKED,
    source="our own: a row's length taken for its stride",
    unseen="masks that were built for this very call",
)
def strides_of_the_mask_are_ignored() -> Iterator[None]:
    """A mask that is a slice of a longer one is read as if it were contiguous."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        mask = more.get("attn_mask")
        more["attn_mask"] = None if mask is None else _walked(mask, _packed(mask), mask.storage_offset())
        return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault(
    "ATTN-11",
    *PLAIN,
    source="our own, after https://github.com/pytorch/pytorch/issues/191937",
    unseen="tensors that were not expanded",
)
def expanded_views_are_read_as_if_copied() -> Iterator[None]:
    """An expanded k or v is walked as if each head and row had memory of its own."""

    def change(call: Any, *qkv: Tensor, **more: Any) -> Tensor:
        return call(*(_walked(t, _packed(t), t.storage_offset()) if 0 in t.stride() else t for t in qkv), **more)

    with patches.kernel(change):
        yield


@fault("ATTN-11", *PLAIN, source="our own: one set of strides for both", unseen="k and v that lie alike")
def values_are_read_by_the_strides_of_keys() -> Iterator[None]:
    """The values are walked by the strides of the keys."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return call(q, k, _walked(v, k.stride(), v.storage_offset()), **more)

    with patches.kernel(change):
        yield


@fault("ATTN-11", *PLAIN, source="our own: the pointer of the storage", unseen="tensors that begin their storage")
def storage_offset_is_ignored() -> Iterator[None]:
    """Tensors are read from the beginning of their storage."""

    def change(call: Any, *qkv: Tensor, **more: Any) -> Tensor:
        return call(*(_walked(t, t.stride(), 0) for t in qkv), **more)

    with patches.kernel(change):
        yield


@fault("ATTN-11", *PLAIN, source="our own: an output buffer to spare", unseen="callers that drop their queries")
def output_is_written_into_the_queries() -> Iterator[None]:
    """The output is right, and lies where the queries were."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return q.copy_(call(q, k, v, **more))

    with patches.kernel(change):
        yield


@fault("ATTN-12", *MISFITS, source="our own: a ratio rounded down", unseen="head counts that divide")
def heads_that_do_not_divide_are_repeated() -> Iterator[None]:
    """Four query heads and three key heads: the first key head is read twice."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        head = torch.arange(q.shape[1], device=q.device) * k.shape[1] // q.shape[1]
        return call(q, k[:, head], v[:, head % v.shape[1]], **more | {"enable_gqa": False})

    with patches.kernel(change):
        yield


@fault("ATTN-12", *MISFITS, source="our own: padding to the kernel's size", unseen="keys of the queries' size")
def shorter_heads_are_padded() -> Iterator[None]:
    """A key head that is shorter than the query's is filled up with zeros."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return call(q, torch.nn.functional.pad(k, (0, q.shape[-1] - k.shape[-1])), v, **more)

    with patches.kernel(change):
        yield


@fault(
    "ATTN-11", *PLAIN, source="our own: what holds for a plain projection", unseen="q, k and v in buffers of their own"
)
def heads_are_taken_to_lie_side_by_side() -> Iterator[None]:
    """Where tokens are the outer dimension, head h is read h * d after the first, whatever lies between."""

    def read(t: Tensor) -> Tensor:
        row, head, token, feature = t.stride()
        return _walked(t, (row, t.shape[3], token, feature), t.storage_offset()) if token > head > t.shape[3] else t

    def change(call: Any, *qkv: Tensor, **more: Any) -> Tensor:
        return call(*map(read, qkv), **more)

    with patches.kernel(change):
        yield
