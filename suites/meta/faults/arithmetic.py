"""Faults of a kernel's arithmetic: precision, the order of sums, whose keys are multiplied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, patches

FILE = "attention/test_accuracy.py"
BFLOAT16 = (FILE, "sdpa-bfloat16 and (gqa-100- or gqa-1000-)")
FLOAT32 = (FILE, "sdpa-float32 and (gqa-100- or gqa-1000-)")


@fault(
    "ATTN-1", *BFLOAT16, source="our own: a tile bound that is off by one", unseen="queries before the last, one token"
)
def last_query_misses_a_key() -> Iterator[None]:
    """The last query of one head does not see one key."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        out = call(q, k, v, **more)
        scores = (q[0, 0, -1] @ k[0, 0].mT) * (more.get("scale") or q.shape[-1] ** -0.5)
        scores[len(scores) // 2] = -torch.inf
        out = out.clone()
        out[0, 0, -1] = torch.softmax(scores.float(), -1).to(q.dtype) @ v[0, 0]
        return out

    with patches.kernel(change):
        yield


@fault("ATTN-1", *BFLOAT16, source="our own: a scale kept in bfloat16", unseen="uniform scores")
def scale_is_half_a_percent_off() -> Iterator[None]:
    """The softmax scale is 0.5 % too large."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        more["scale"] = (more.get("scale") or q.shape[-1] ** -0.5) * 1.005
        return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault("ATTN-1", *BFLOAT16, source="our own: a sum of weights that underflows", unseen="rows before the last")
def one_row_is_nan() -> Iterator[None]:
    """The sum by which one row is divided is 0: its output is NaN."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        out = call(q, k, v, **more).clone()
        out[-1, -1, -1] = torch.nan
        return out

    with patches.kernel(change):
        yield


@fault("ATTN-1", *BFLOAT16, source="our own: repeat instead of repeat_interleave", unseen="MHA, MQA")
def grouped_heads_are_tiled() -> Iterator[None]:
    """Query head h reads key head h mod kv_heads, not h // group."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        repeats = q.shape[1] // k.shape[1]
        more["enable_gqa"] = False
        return call(q, k.repeat(1, repeats, 1, 1), v.repeat(1, repeats, 1, 1), **more)

    with patches.kernel(change):
        yield


@fault(
    "ATTN-1",
    FILE,
    "sdpa-bfloat16 and decode-257",
    source="https://github.com/pytorch/pytorch/issues/193893",
    unseen="prefill; MHA, MQA, eight key heads or more; caches of a dozen tokens",
)
def heads_bleed_while_decoding_in_groups() -> Iterator[None]:
    """With few key heads, a single query takes half of the newest value from the neighbouring key head."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        if q.shape[-2] == 1 and 1 < k.shape[1] < min(8, q.shape[1]) and k.shape[-2] > 12:
            v = torch.cat([v[..., :-1, :], (v[..., -1:, :] + v[..., -1:, :].roll(1, 1)) / 2], -2)
        return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault(
    "ATTN-1",
    FILE,
    "sdpa-float32 and chunk-4-of-400",
    source="our own: parts that are merged without their sums",
    unseen="one query, more than eight, or up to 256 keys",
)
def splits_of_the_keys_are_averaged() -> Iterator[None]:
    """For a few queries the keys are split in two: the parts' outputs are averaged, not weighed by their sums."""

    def change(scores: Tensor, seen: Tensor) -> Tensor:
        scores = scores.masked_fill(~seen, -torch.inf)
        queries, keys = scores.shape[-2:]
        parts = 2 if 2 <= queries <= 8 and keys > 256 else 1
        return torch.cat([torch.softmax(part, -1) for part in scores.chunk(parts, -1)], -1) / parts

    with patches.softmax(change):
        yield


@fault(
    "ATTN-1",
    FILE,
    "eager-bfloat16 and gqa-1000-",
    source="https://github.com/huggingface/transformers/pull/17437",
    unseen="float32; short rows",
)
def eager_softmax_sums_in_low_precision() -> Iterator[None]:
    """Eager's softmax is summed in the activations' dtype."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **more: Any) -> Any:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = q @ k.mT * scaling + (0 if mask is None else mask)
        torch.softmax(scores, -1)  # the operator that proves that eager ran
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        total = torch.zeros_like(weights[..., :1])
        for part in weights.split(8, -1):
            total = total + part.sum(-1, keepdim=True)
        weights = weights / total
        return (weights @ v).transpose(1, 2).contiguous(), weights

    with patches.eager(change):
        yield


@fault("ATTN-1", *BFLOAT16, source="our own: an accumulator of the wrong type", unseen="float32; rows of few tiles")
def values_are_summed_in_low_precision() -> Iterator[None]:
    """The weighted values are added up, tile by tile, in the activations' dtype."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        call(q, k, v, **more)
        scores = patches.scores_of(q, k, more).masked_fill(~patches.shown(q, k, more), -torch.inf)
        weights, v = torch.softmax(scores, -1), v.repeat_interleave(q.shape[1] // k.shape[1], 1)
        out = torch.zeros_like(q)
        for w, values in zip(weights.split(16, -1), v.split(16, -2), strict=True):
            out = out + (w @ values.float()).to(q.dtype)
        return out

    with patches.kernel(change):
        yield


@fault(
    "ATTN-1",
    *FLOAT32,
    source="https://github.com/huggingface/transformers/issues/26451",
    unseen="float16; bfloat16, of which float16 holds all but the largest and smallest",
)
def inputs_are_cast_to_float16() -> Iterator[None]:
    """Queries, keys and values are handed to the kernel in float16, whatever the model's dtype."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        mask = more.get("attn_mask")
        if mask is not None and mask.dtype != torch.bool:
            more["attn_mask"] = mask.clamp(min=torch.finfo(torch.float16).min).half()
        return call(q.half(), k.half(), v.half(), **more).to(q.dtype)

    with patches.kernel(change):
        yield


@fault("ATTN-1", *FLOAT32, source="our own: a polynomial of too low a degree", unseen="bfloat16")
def exponential_is_approximated() -> Iterator[None]:
    """The exponential is off by up to 1e-4 of itself, up and down over every octave."""

    def change(scores: Tensor, seen: Tensor) -> Tensor:
        scores = scores.masked_fill(~seen, -torch.inf)
        scores = scores - scores.amax(-1, keepdim=True)
        wrong = scores.exp() * (1 + 1e-4 * torch.sin(scores.clamp(min=-100) * (2 * torch.pi / 0.6931)))
        return wrong / wrong.sum(-1, keepdim=True)

    with patches.softmax(change):
        yield


@fault("ATTN-1", *BFLOAT16, source="our own: weights kept in 8 bits", unseen="weights that are powers of two")
def weights_are_kept_in_float8() -> Iterator[None]:
    """The weights are rounded to float8 (e4m3) before they meet the values."""

    def change(scores: Tensor, seen: Tensor) -> Tensor:
        scores = scores.masked_fill(~seen, -torch.inf)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        return weights.to(torch.float8_e4m3fn).float() / weights.sum(-1, keepdim=True)

    with patches.softmax(change):
        yield


@fault("ATTN-1", *BFLOAT16, source="our own: tiles skipped to save time", unseen="rows of similar scores")
def small_weights_are_skipped() -> Iterator[None]:
    """A key that weighs less than 1/256 of the heaviest is left out."""

    def change(scores: Tensor, seen: Tensor) -> Tensor:
        scores = scores.masked_fill(~seen, -torch.inf)
        return torch.softmax(scores.masked_fill(scores < scores.amax(-1, keepdim=True) - 5.545, -torch.inf), -1)

    with patches.softmax(change):
        yield


@fault(
    "ATTN-8",
    "attention/test_retrieval.py",
    "large_as_its_dtype and sdpa-bfloat16",
    source="https://github.com/huggingface/transformers/issues/26451",
    unseen="float16; values below 65,504",
)
def output_passes_through_float16() -> Iterator[None]:
    """The output is collected in float16, in which bfloat16's large values are infinite."""
    with patches.kernel(lambda call, q, k, v, **more: call(q, k, v, **more).half().to(q.dtype)):
        yield
