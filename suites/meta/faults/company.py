"""Faults of determinism: an output that depends on the call before, on chance, or on the rest of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from suites.meta.faults import fault, patches

FILE = "attention/test_determinism.py"
AGAIN = (FILE, "gives_the_same_bits and sdpa-float32")
TOGETHER = (FILE, "depend_on_its_neighbours and sdpa-float32")
ALONE = (FILE, "same_in_any_batch and sdpa-float32 and not decode")


def _in_order(call: Any, q: Tensor, k: Tensor, v: Tensor, more: dict[str, Any], order: Tensor) -> Tensor:
    """The same call with its keys in another order: equal but for the order of sums."""
    seen = patches.shown(q, k, more)[..., order]
    return call(q, k[..., order, :], v[..., order, :], **more | {"attn_mask": seen, "is_causal": False})


@fault(
    "ATTN-13",
    *AGAIN,
    source="https://github.com/fla-org/flash-linear-attention/issues/945",
    unseen="a tolerance: every call is as accurate as the others",
)
def sums_come_in_any_order() -> Iterator[None]:
    """Parts of a sum are added as they finish."""
    draw = torch.Generator().manual_seed(0)

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return _in_order(call, q, k, v, more, torch.randperm(k.shape[-2], generator=draw))

    with patches.kernel(change):
        yield


@fault("ATTN-13", *AGAIN, source="https://github.com/flagos-ai/FlagGems/issues/5235", unseen="the first call")
def workspace_is_not_cleared() -> Iterator[None]:
    """One row of the output is not written: it holds what the call before left there."""
    left: dict[Any, Tensor] = {}

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        out = call(q, k, v, **more).clone()
        row = out[-1, -1, -1].clone()
        out[-1, -1, -1] = left.get(out.shape, row)
        left[out.shape] = row + 1
        return out

    with patches.kernel(change):
        yield


@fault(
    "ATTN-13",
    *AGAIN,
    source="https://github.com/ikawrakow/ik_llama.cpp/issues/2083",
    unseen="two calls out of three",
)
def every_third_call_has_a_nan() -> Iterator[None]:
    """One row of every third call is NaN."""
    calls = count(1)

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        out = call(q, k, v, **more)
        if next(calls) % 3 == 0:
            out = out.clone()
            out[0, -1, -1] = torch.nan
        return out

    with patches.kernel(change):
        yield


@fault("ATTN-14", *TOGETHER, source="our own: a reduction over one dimension too many", unseen="rows that score alike")
def maximum_is_that_of_the_batch() -> Iterator[None]:
    """Softmax subtracts the largest score of the batch: a quiet row beside a loud one underflows."""

    def change(scores: Tensor, seen: Tensor) -> Tensor:
        scores = scores.masked_fill(~seen, -torch.inf)
        weights = (scores - scores.amax((0, -1), keepdim=True)).exp()
        return weights / weights.sum(-1, keepdim=True)

    with patches.softmax(change):
        yield


@fault("ATTN-14", *TOGETHER, source="our own: 16 bits, one scale for the tensor", unseen="rows that are equally loud")
def keys_share_a_scale_with_the_batch() -> Iterator[None]:
    """Keys are rounded to 16 bits with a scale that the loudest row of the batch sets."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        scale = k.abs().amax() / 32767
        return call(q, (k / scale).round() * scale, v, **more)

    with patches.kernel(change):
        yield


@fault("ATTN-15", *ALONE, claims=("batch-invariance",), source="our own: a heuristic", unseen="a tolerance")
def lone_row_takes_another_kernel() -> Iterator[None]:
    """A batch of one is answered by MATH, a larger one by the fused kernel."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        if len(q) > 1:
            return call(q, k, v, **more)
        with sdpa_kernel(SDPBackend.MATH):
            return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault("ATTN-15", *ALONE, claims=("batch-invariance",), source="our own: split-k", unseen="a tolerance")
def keys_are_split_by_the_size_of_the_batch() -> Iterator[None]:
    """How many parts the keys are summed in, and so in which order, depends on how many rows there are."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        parts = torch.arange(k.shape[-2], device=k.device).tensor_split(len(q))
        return _in_order(call, q, k, v, more, torch.cat(parts[::-1]))

    with patches.kernel(change):
        yield
