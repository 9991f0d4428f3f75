"""Faults that cost memory and leave every output as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from suites.meta.faults import after_loading, fault, swapped

WEIGHTS = ("memory/test_weights.py", "llama-gqa and float32")
CACHE = ("memory/test_kv_cache.py", "llama-gqa and float32")


@fault("MEM-1", *WEIGHTS, source="https://github.com/ROCm/vllm/pull/1213", unseen="untied models")
def tied_head_is_duplicated() -> Iterator[None]:
    """The output head owns a second copy of the embedding."""

    def change(model: Any) -> None:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)

    with after_loading(change):
        yield


@fault("MEM-1", *WEIGHTS, source="our own: a master copy that was meant for training", unseen="outputs")
def full_precision_copy_is_kept() -> Iterator[None]:
    """One layer keeps a float32 copy of its weight in an attribute that is no buffer."""

    def change(model: Any) -> None:
        layer = next(m for m in model.modules() if isinstance(m, nn.Linear))
        layer.master = [layer.weight.detach().float().clone()]

    with after_loading(change):
        yield


@fault(
    "MEM-1",
    "memory/test_weights.py",
    "nf4 and llama-gqa",
    source="https://github.com/pytorch/torchchat/issues/1362",
    unseen="accuracy: it is better",
)
def one_layer_stays_in_full_precision() -> Iterator[None]:
    """One projection is never quantized."""
    from suites.meta.faults.quantization import _not_converted

    with _not_converted(lambda names: [*names, "model.layers.0.mlp.down_proj"]):
        yield


@fault("MEM-2", *CACHE, source="https://github.com/meta-pytorch/torchtune/issues/38", unseen="MHA")
def cache_stores_every_query_head() -> Iterator[None]:
    """Keys and values are repeated before they are cached."""
    from transformers.cache_utils import DynamicLayer

    original = DynamicLayer.update

    def update(self: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        keys, values = original(self, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), *args, **more)
        return keys[:, ::2], values[:, ::2]

    with swapped(DynamicLayer, "update", update):
        yield


@fault("MEM-2", *CACHE, source="https://github.com/huggingface/transformers/pull/46700", unseen="DynamicCache")
def static_cache_is_twice_as_long() -> Iterator[None]:
    """max_cache_len is not honoured."""
    from transformers.cache_utils import StaticLayer

    original = StaticLayer.__init__

    def init(self: Any, max_cache_len: int, **more: Any) -> None:
        original(self, max_cache_len=2 * max_cache_len, **more)

    with swapped(StaticLayer, "__init__", init):
        yield


@fault("MEM-2", *CACHE, source="our own: a cache that keeps float32 for safety", unseen="float32 models")
def cache_keeps_the_previous_step() -> Iterator[None]:
    """Each layer keeps the keys of the step before beside the current ones."""
    from transformers.cache_utils import DynamicLayer

    original = DynamicLayer.update

    def update(self: Any, *args: Any, **more: Any) -> Any:
        self.before = getattr(self, "keys", torch.empty(0))
        return original(self, *args, **more)

    with swapped(DynamicLayer, "update", update):
        yield
