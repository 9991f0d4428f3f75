"""Faults of cost: a cache that is not used, and work that is done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from suites.meta.faults import fault, patches, swapped

STEPS = ("kv_cache/test_engagement.py", "dynamic-plain-llama-gqa")
WORK = ("kv_cache/test_cost.py", "attention_and_no_more and dynamic-plain-llama-gqa")
UNSEEN = ("kv_cache/test_cost.py", "never_seen and sdpa-math and llama-gqa and float32")


def busy(seconds: float) -> None:
    """Compute for so long."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def _recomputing(when: Callable[[dict[str, Any]], bool]) -> Callable[..., Any]:
    """`generate` without the cache that it was asked for. when(its keywords) -> whether."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        if when(more):
            more["generation_config"].use_cache = False
            more = {name: value for name, value in more.items() if name not in ("cache", "past_key_values")}
        return original(model, *args, **more)

    return change


@fault("KV-16", *STEPS, source="our own: an option that is overwritten", unseen="tokens")
def wish_for_a_cache_is_lost() -> Iterator[None]:
    """`generate` recomputes the whole text for every token."""
    with patches.generation("generate", _recomputing(lambda keywords: True)):
        yield


@fault("KV-16", *STEPS, source="our own: a retry that does not undo", unseen="prompts")
def steps_are_written_twice() -> Iterator[None]:
    """While decoding, each token is written into the cache twice, the second time after attention has got its keys."""

    def change(update: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        found = update(layer, k, v, *args, **more)
        if k.shape[-2] == 1:
            update(layer, k, v, *args, **more)
        return found

    with patches.layers(change, "DynamicLayer"):
        yield


@fault("KV-17", *WORK, source="our own: scores for statistics", unseen="logits")
def scores_of_all_tokens_are_formed() -> Iterator[None]:
    """Every step multiplies all cached keys with each other."""

    def change(update: Any, layer: Any, *args: Any, **more: Any) -> Any:
        keys, values = update(layer, *args, **more)
        keys @ keys.mT
        return keys, values

    with patches.layers(change, "DynamicLayer"):
        yield


@fault("KV-17", *WORK, source="our own: a rotation that is undone and done again", unseen="logits")
def cached_keys_are_rotated_again() -> Iterator[None]:
    """Every step turns all cached keys, by a product with a matrix."""

    def change(update: Any, layer: Any, *args: Any, **more: Any) -> Any:
        keys, values = update(layer, *args, **more)
        return keys @ keys.new_ones(keys.shape[-1]).diag(), values

    with patches.layers(change, "DynamicLayer"):
        yield


@fault(
    "KV-18",
    *UNSEEN,
    source="our own: as cuDNN of torch 2.11 was measured to do, 40 ms a length",
    unseen="the second time; numbers",
)
def kernel_is_planned_for_each_length() -> Iterator[None]:
    """A plan is made for every count of keys that a single query has not met yet."""
    planned = set()

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        if q.shape[-2] == 1 and k.shape[-2] not in planned:
            planned.add(k.shape[-2])
            busy(0.2)
        return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault("KV-18", *UNSEEN, source="our own: a graph of fixed shapes", unseen="the second time; steps; numbers")
def graph_is_captured_for_each_length_of_a_prompt() -> Iterator[None]:
    """A prompt of a length that was not met yet is run once more, slowly, to be captured."""
    captured = set()

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        if q.shape[-2] > 1 and q.shape[-2] not in captured:
            captured.add(q.shape[-2])
            busy(0.3)
        return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault("KV-18", *UNSEEN, source="our own: a compiler without dynamic shapes", unseen="the second time; numbers")
def graph_is_compiled_for_each_shape() -> Iterator[None]:
    """Attention is compiled for every shape of keys, and what was compiled is kept."""
    compiled = set()

    def change(call: Any, module: Any, q: Tensor, k: Tensor, *args: Any, **more: Any) -> Any:
        if tuple(k.shape) not in compiled:
            compiled.add(tuple(k.shape))
            busy(0.2)
        return call(module, q, k, *args, **more)

    with patches.interface(change):
        yield


@fault("KV-16", *STEPS, source="https://github.com/ggml-org/llama.cpp/issues/3738", unseen="tokens; the first turn")
def next_turn_is_computed_from_the_start() -> Iterator[None]:
    """`generate` empties the cache of an earlier turn, and feeds the whole text again."""
    patches.empties("DynamicLayer")

    def change(original: Any, model: Any, ids: Tensor, config: Any, keywords: dict[str, Any], **more: Any) -> Any:
        if patches.cached(keywords):
            keywords.get("cache", keywords.get("past_key_values")).reset()
        return original(model, ids, config, keywords, **more)

    with patches.generation("_prefill", change):
        yield


@fault("KV-16", *STEPS, source="our own: a way out for what the cache cannot mask", unseen="tokens; no padding")
def padded_batches_are_not_cached() -> Iterator[None]:
    """Where a batch is padded, `generate` recomputes the whole text for every token."""
    with patches.generation("generate", _recomputing(lambda keywords: not bool(keywords["attention_mask"].all()))):
        yield


@fault(
    "KV-17",
    "kv_cache/test_cost.py",
    "each_weight_once and float32-llama-gqa",
    source="our own: a tuner whose results are not found again",
    unseen="numbers; how cost grows",
)
def products_are_tuned_at_each_call() -> Iterator[None]:
    """Each product with a weight is formed twice, to see which way is faster."""
    original = F.linear

    def linear(*args: Any, **more: Any) -> Tensor:
        original(*args, **more)
        return original(*args, **more)

    with swapped(F, "linear", linear):
        yield
