"""Faults of continuous batching: requests share a sequence and a cache, and ought not to notice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from suites.meta.faults import fault, patches, swapped

PAGED = ("attention/test_paged.py", "fits and paged-eager and llama-gqa")


@fault(
    "ATTN-18",
    *PAGED,
    source="https://github.com/vllm-project/vllm/issues/37076",
    unseen="a request that is served alone",
)
def requests_see_each_other() -> Iterator[None]:
    """The packed sequence is masked as one text: a request reads what was packed before it."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **more: Any) -> Any:
        return call(module, q, k, v, mask.clamp(min=-1.0), **more)

    with patches.interface(change, "paged|eager"):
        yield


@fault("ATTN-18", *PAGED, source="our own: a block table that is off by one", unseen="constant values")
def values_come_from_the_slot_before() -> Iterator[None]:
    """The value that is read belongs to the key before."""
    from transformers.generation.continuous_batching.cache import PagedAttentionCache

    original = PagedAttentionCache.update

    def update(*args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        keys, values = original(*args, **keywords)
        return keys, values.roll(1, -2)

    with swapped(PagedAttentionCache, "update", update):
        yield
