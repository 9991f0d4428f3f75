"""Faults of attention kernels and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from suites.meta.faults import fault, swapped, swapped_item

OP = ("attention/test_accuracy.py", "sdpa and bfloat16")
LOGITS = ("attention/test_model_logits.py", "sdpa and llama-gqa and float32")


@contextmanager
def _sdpa(change: Callable[..., Tensor]) -> Iterator[None]:
    """Patch what the kernels see. change(call, q, k, v, **keywords)."""
    original = F.scaled_dot_product_attention

    def patched(query: Tensor, key: Tensor, value: Tensor, **keywords: Any) -> Tensor:
        return change(original, query, key, value, **keywords)

    with swapped(F, "scaled_dot_product_attention", patched):
        yield


@contextmanager
def _interface(change: Callable[..., Any], implementation: str = "sdpa") -> Iterator[None]:
    """Patch transformers' attention interface. change(forward, module, q, k, v, mask, **keywords)."""
    from transformers import AttentionInterface

    mapping = AttentionInterface._global_mapping
    original = mapping[implementation]

    def patched(*args: Any, **keywords: Any) -> Any:
        return change(original, *args, **keywords)

    with swapped_item(mapping, implementation, patched):
        yield


@fault(
    "ATTN-1", *OP, source="our own: a tile bound that is off by one", unseen="queries before the last, full attention"
)
def last_query_misses_a_key() -> Iterator[None]:
    """The last query of one head does not see one key."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        out = call(q, k, v, **more)
        groups = q.shape[1] // k.shape[1]
        scores = (q[0, 0, -1] @ k[0, 0].mT) * (more.get("scale") or q.shape[-1] ** -0.5)
        scores[len(scores) // 2] = -torch.inf
        out = out.clone()
        out[0, 0, -1] = torch.softmax(scores.float(), -1).to(q.dtype) @ v[0, 0 // groups]
        return out

    with _sdpa(change):
        yield


@fault("ATTN-1", *OP, source="our own: a scale kept in bfloat16", unseen="uniform scores")
def scale_is_half_a_percent_off() -> Iterator[None]:
    """The softmax scale is 0.5 % too large."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        more["scale"] = (more.get("scale") or q.shape[-1] ** -0.5) * 1.005
        return call(q, k, v, **more)

    with _sdpa(change):
        yield


@fault("ATTN-1", *OP, source="https://github.com/pytorch/pytorch/issues/127055", unseen="rows before the last")
def one_row_is_nan() -> Iterator[None]:
    """Online softmax starts on a tile that is masked as a whole: NaN in one row."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        out = call(q, k, v, **more).clone()
        out[-1, -1, -1] = torch.nan
        return out

    with _sdpa(change):
        yield


@fault("ATTN-1", *OP, source="our own: repeat instead of repeat_interleave", unseen="MHA, MQA")
def grouped_heads_are_tiled() -> Iterator[None]:
    """Query head h reads key head h mod kv_heads, not h // group."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        repeats = q.shape[1] // k.shape[1]
        more["enable_gqa"] = False
        return call(q, k.repeat(1, repeats, 1, 1), v.repeat(1, repeats, 1, 1), **more)

    with _sdpa(change):
        yield


@fault("ATTN-2", *LOGITS, source="https://github.com/huggingface/transformers/pull/38290", unseen="eager")
def scale_is_applied_twice() -> Iterator[None]:
    """Queries are multiplied by 1/sqrt(d) and the kernel scales again."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        return call(module, q * (more.get("scaling") or q.shape[-1] ** -0.5), k, v, mask, **more)

    with _interface(change):
        yield


@fault("ATTN-2", *LOGITS, source="https://github.com/huggingface/transformers/issues/48748", unseen="padding, decode")
def future_leaks_where_the_mask_is_skipped() -> Iterator[None]:
    """The mask is left out as an optimisation, and is_causal is not set."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        if mask is None and q.shape[2] > 1:
            more["is_causal"] = False
        return call(module, q, k, v, mask, **more)

    with _interface(change):
        yield


@fault(
    "ATTN-2",
    "attention/test_model_logits.py",
    "sdpa and mistral and float32",
    source="https://github.com/huggingface/transformers/issues/39408",
    unseen="texts shorter than the window",
)
def sliding_window_sees_one_key_more() -> Iterator[None]:
    """A query sees W + 1 keys."""
    from transformers import masking_utils

    def overlay(window: int) -> Any:
        return lambda batch, head, query, key: key > query - window - 1

    with swapped(masking_utils, "sliding_window_overlay", overlay):
        yield


@fault(
    "ATTN-1",
    "attention/test_accuracy.py",
    "eager and bfloat16 and gqa-1000",
    source="https://github.com/huggingface/transformers/pull/17437",
    unseen="float32",
)
def eager_softmax_sums_in_low_precision() -> Iterator[None]:
    """Eager's softmax is summed in the activations' dtype."""
    from transformers.models.llama import modeling_llama

    def eager(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **more: Any) -> Any:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = q @ k.mT * scaling + (0 if mask is None else mask)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        total = torch.zeros_like(weights[..., :1])
        for part in weights.split(8, -1):
            total = total + part.sum(-1, keepdim=True)
        weights = weights / total
        return (weights @ v).transpose(1, 2).contiguous(), weights

    with swapped(modeling_llama, "eager_attention_forward", eager):
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
    "attention/test_model_logits.py",
    "eager and llama-gqa and float32",
    source="https://github.com/thinking-machines-lab/batch_invariant_ops/pull/24",
    unseen="float16 and bfloat16 models",
)
def float32_products_run_in_tf32() -> Iterator[None]:
    """Every float32 matrix product keeps 10 bits, the reference's too: candidate and reference err alike."""
    with _Tf32():
        yield
