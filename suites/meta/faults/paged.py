"""Faults of continuous batching: requests share a sequence and a cache, and ought not to notice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from suites.meta.faults import fault, patches, swapped, swapped_item

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


@fault(
    "ATTN-18",
    "attention/test_paged.py",
    "two-pages and paged-eager and llama-gqa",
    source="our own: a block table of one entry",
    unseen="requests of up to a page, which has 256 tokens",
)
def pages_beyond_the_first_are_the_first() -> Iterator[None]:
    """What a request keeps beyond its first page is read from the first."""
    from transformers.generation.continuous_batching.cache_allocators.full_attention import FullAttentionCacheAllocator

    original = FullAttentionCacheAllocator.get_read_indices

    def get_read_indices(self: Any, request: str, *args: Any) -> list[int]:
        pages = self.block_table[request]
        with swapped_item(self.block_table, request, pages[:1] * len(pages)):
            return original(self, request, *args)

    with swapped(FullAttentionCacheAllocator, "get_read_indices", get_read_indices):
        yield


@fault(
    "ATTN-18",
    "attention/test_paged.py",
    "alike-200 and paged-eager and llama-gqa",
    source="our own: a hash of half of the page",
    unseen="prompts of up to a page; prompts that part in the first half of a page, or after whole pages",
)
def page_is_known_by_its_first_half() -> Iterator[None]:
    """Prompts share a page whose first half is the same, whatever follows in it."""
    from transformers.generation.continuous_batching.cache_allocators import cache_allocator

    original = cache_allocator.compute_block_hash

    def compute_block_hash(parent: int | None, tokens: list[int]) -> int:
        return original(parent, tokens[: len(tokens) // 2])

    with swapped(cache_allocator, "compute_block_hash", compute_block_hash):
        yield


@fault(
    "ATTN-18",
    "attention/test_paged.py",
    "alike-270 and paged-eager and llama-gqa",
    source="our own: the page's number, off by one",
    unseen="prompts that have no whole page in common",
)
def page_that_is_shared_is_the_next_one() -> Iterator[None]:
    """A prompt that begins as another is handed the page after the one that they have in common."""
    from transformers.generation.continuous_batching.cache_allocators.cache_allocator import CacheAllocator

    original = CacheAllocator.match_prefix_blocks

    def match_prefix_blocks(self: Any, prompt: list[int]) -> list[int]:
        return [page + 1 for page in original(self, prompt)]

    with swapped(CacheAllocator, "match_prefix_blocks", match_prefix_blocks):
        yield


@fault(
    "ATTN-18",
    "attention/test_paged.py",
    "crowded and paged-eager and llama-gqa",
    source="https://github.com/PaddlePaddle/FastDeploy/pull/3080, before it",
    unseen="room for all; requests that made room before their first token",
)
def who_made_room_forgets_what_it_said() -> Iterator[None]:
    """A request that gave its pages to others goes on from its prompt, without what it had already said."""
    from transformers.generation.continuous_batching.requests import RequestState

    original = RequestState.create_equivalent_initial_request

    def again(self: Any) -> Any:
        state = original(self)
        state.remaining_prefill_tokens = self.initial_tokens[:]
        return state

    with swapped(RequestState, "create_equivalent_initial_request", again):
        yield


@fault(
    "ATTN-18",
    "attention/test_paged.py",
    "after-others and paged-eager and llama-gqa",
    source="https://github.com/vllm-project/vllm-ascend/issues/16662",
    unseen="requests that come to their end; pages to spare",
)
def cancelled_request_keeps_its_pages() -> Iterator[None]:
    """The pages of a request that is cancelled stay taken."""
    from transformers.generation.continuous_batching.cache import PagedAttentionCache
    from transformers.generation.continuous_batching.scheduler import Scheduler

    original = Scheduler.clear_cancelled_requests

    def clear(self: Any) -> Any:
        with swapped(PagedAttentionCache, "free_blocks", lambda cache, request, **more: None):
            return original(self)

    with swapped(Scheduler, "clear_cancelled_requests", clear):
        yield
