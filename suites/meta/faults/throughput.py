"""Faults that make one of two ways faster by being wrong: a ratio of the two would be a lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from suites.meta.faults import fault, patches

HEADS = ("throughput/test_decode.py", "shared_heads and gqa")
ENABLED = ("--benchmark-enable",)


@fault(
    "TIME-1",
    *HEADS,
    source="https://github.com/huggingface/transformers/pull/26782",
    unseen="MHA and MQA",
    options=ENABLED,
)
def timed_heads_are_tiled() -> Iterator[None]:
    """Shared key-value heads are tiled over the query heads, where each belongs to a group of neighbours."""

    def change(forward: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        groups, heads = k.shape[1], q.shape[1]
        order = [i * (heads // groups) + j for j in range(heads // groups) for i in range(groups)]
        back = sorted(range(heads), key=order.__getitem__)
        out, weights = forward(module, q[:, back], k, v, *args, **more)
        return out[:, :, order], weights

    with patches.interface(change):
        yield


@fault(
    "TIME-1",
    *HEADS,
    source="our own: a cache that forgets what is far to be fast",
    unseen="a look at the time",
    options=ENABLED,
)
def timed_steps_see_half_of_the_cache() -> Iterator[None]:
    """A step attends to the newest half of the tokens only."""

    def change(original: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        keys, values = original(layer, k, v, *args, **more)
        if k.shape[-2] > 1:
            return keys, values
        keys, values = keys.clone(), values.clone()
        half = keys.shape[-2] // 2
        keys[:, :, :half], values[:, :, :half] = keys[:, :, half : 2 * half], values[:, :, half : 2 * half]
        return keys, values

    with patches.layers(change, "DynamicLayer"):
        yield
