"""Faults of key-value caches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, patches, swapped
from suites.meta.faults.positions import rotary

DECODE = ("kv_cache/test_decode.py", "llama-gqa and float32 and prompt-33")


def _all_visible_to_one_token(build: Any, keywords: dict[str, Any]) -> Any:
    mask = build(**keywords)
    if mask is None or mask.shape[-2] != 1:
        return mask
    return torch.ones_like(mask) if mask.dtype == torch.bool else torch.zeros_like(mask)


@fault("KV-1", *DECODE, source="https://github.com/RobertCsordas/moeut/pull/6", unseen="the first call")
def decoding_restarts_at_position_zero() -> Iterator[None]:
    """The rotary offset is taken before the cache is joined: every cached call starts at position 0."""
    with rotary(lambda forward, module, x, positions: forward(module, x, positions - positions[:, :1])):
        yield


@fault("KV-1", *DECODE, source="https://github.com/meta-pytorch/torchtune/issues/398", unseen="bfloat16 models")
def cache_is_kept_in_bfloat16() -> Iterator[None]:
    """The cache does not follow the model's dtype: keys and values are rounded to bfloat16 when stored."""
    from transformers import Cache

    original = Cache.update

    def update(self: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        return original(self, k.bfloat16().to(k.dtype), v.bfloat16().to(v.dtype), *args, **more)

    with swapped(Cache, "update", update):
        yield


@fault(
    "KV-1",
    "kv_cache/test_decode.py",
    "static-spare and llama-gqa and float32",
    source="https://github.com/huggingface/transformers/issues/30400",
    unseen="DynamicCache; a StaticCache that is full",
)
def unwritten_slots_are_visible() -> Iterator[None]:
    """The mask is skipped while decoding: empty slots of a StaticCache take part in the softmax."""
    with patches.masks(_all_visible_to_one_token):
        yield


@fault(
    "KV-1",
    "kv_cache/test_decode.py",
    "dynamic-plain and mistral and float32",
    source="https://github.com/karpathy/nanochat/pull/456",
    unseen="prefill; caches that drop old tokens themselves",
)
def window_is_ignored_while_decoding() -> Iterator[None]:
    """A single query sees all keys that are cached, window or not."""
    with patches.masks(_all_visible_to_one_token):
        yield


@fault(
    "KV-1",
    "kv_cache/test_decode.py",
    "dynamic and llama-gqa and float32 and prompt-33",
    source="https://github.com/vllm-project/vllm/issues/37076",
    unseen="the newest token",
)
def one_old_token_is_overwritten() -> Iterator[None]:
    """A freed block is reused too early: one old value row is another token's."""
    from transformers.cache_utils import DynamicLayer

    original = DynamicLayer.update

    def update(self: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        keys, values = original(self, k, v, *args, **more)
        if k.shape[-2] == 1:
            values = values.clone()
            values[..., 3, :] = values[..., 4, :]
            self.values = values
        return keys, values

    with swapped(DynamicLayer, "update", update):
        yield


@fault(
    "KV-1",
    "kv_cache/test_decode.py",
    "prompt-250-dynamic-plain-llama-gqa-bfloat16",
    source="our own: a kernel for one token that casts all it is given",
    unseen="fewer than 258 tokens; prompts; float32",
)
def positions_of_steps_are_bfloat16() -> Iterator[None]:
    """A single token's position is cast to the model's dtype: in bfloat16, 257 is 256."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        return forward(module, x, positions.to(x.dtype) if positions.shape[-1] == 1 else positions)

    with rotary(change):
        yield
