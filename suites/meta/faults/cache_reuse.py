"""Faults of history: what was dropped, reset, shared or asked before is still there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, patches, swapped
from suites.meta.faults.positions import rotary

ROLLBACK = ("kv_cache/test_rollback.py", "no_trace and several-float32-dynamic-plain-llama-gqa")
SECOND = ("kv_cache/test_reuse.py", "as-long-float32-dynamic-plain-llama-gqa")
PREFIX = ("kv_cache/test_reuse.py", "prefix-float32-static-spare-llama-gqa")
CHAT = ("kv_cache/test_reuse.py", "turns-float32-dynamic-plain-llama-gqa")
IN_CHUNKS = ("kv_cache/test_reuse.py", "goes_on_in_chunks and dynamic-plain-llama-gqa")
TALK = ("kv_cache/test_reuse.py", "goes_on_with_a_chat and dynamic-plain-llama-gqa")
GROWING = ("DynamicLayer",)


@fault("KV-6", *ROLLBACK, source="https://github.com/raullenchai/Rapid-MLX/pull/1124", unseen="no rollback")
def crop_keeps_one_token_too_many() -> Iterator[None]:
    """One of the tokens that were refused stays."""

    def change(crop: Any, layer: Any, count: int) -> None:
        crop(layer, count + 1 if count < 0 else count)

    with patches.layers(change, *GROWING, method="crop"):
        yield


@fault("KV-6", *ROLLBACK, source="our own: a slice from the wrong end", unseen="the cache's length; keys")
def crop_drops_the_oldest_values() -> Iterator[None]:
    """Values lose their oldest tokens, keys their newest."""
    with patches.layers(patches.drop_the_oldest_values, *GROWING, method="crop"):
        yield


@fault(
    "KV-10",
    *SECOND,
    source="https://github.com/vllm-project/vllm/issues/37076",
    unseen="the first request; the same request again",
)
def prefix_of_another_request_is_found() -> Iterator[None]:
    """The first tokens of a prompt come from the last prompt of that length."""
    pool: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def change(cache: Any, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if k.shape[-2] < 8:
            return k, v
        found = pool.get((layer, k.shape[-2]))
        pool[layer, k.shape[-2]] = k[..., :4, :].clone(), v[..., :4, :].clone()
        if found is None or found[0].shape != k[..., :4, :].shape:
            return k, v
        return torch.cat([found[0], k[..., 4:, :]], -2), torch.cat([found[1], v[..., 4:, :]], -2)

    with patches.written(change):
        yield


@fault("KV-10", *SECOND, source="our own: a reset to the length of a system prompt", unseen="a new cache")
def reset_leaves_the_first_token() -> Iterator[None]:
    """After a reset the first token of the request before is still there."""

    def change(reset: Any, layer: Any) -> None:
        layer.keys, layer.values = layer.keys[..., :1, :], layer.values[..., :1, :]

    with patches.layers(change, *GROWING, method="reset"):
        yield


@fault("KV-10", *SECOND, source="our own: a pool that clears a page once", unseen="the first two requests")
def second_reset_leaves_the_first_token() -> Iterator[None]:
    """From the third request on, the first token of the request before is still there after a reset."""

    def change(reset: Any, layer: Any) -> None:
        layer.resets = getattr(layer, "resets", 0) + 1
        if layer.resets > 1:
            layer.keys, layer.values = layer.keys[..., :1, :], layer.values[..., :1, :]
        else:
            reset(layer)

    with patches.layers(change, *GROWING, method="reset"):
        yield


@fault("KV-11", *PREFIX, source="our own: a copy that is shallow", unseen="one continuation")
def continuations_write_into_one_buffer() -> Iterator[None]:
    """A copy of a cache has lengths of its own, and shares its buffers."""
    from transformers.cache_utils import StaticLayer

    def shallow(self: Any, memo: dict[int, Any]) -> Any:
        twin = type(self).__new__(type(self))
        vars(twin).update(vars(self))
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and not value.dim():
                setattr(twin, name, value.clone())
        return twin

    with swapped(StaticLayer, "__deepcopy__", shallow):
        yield


@fault("KV-11", *CHAT, source="https://github.com/RobertCsordas/moeut/pull/6", unseen="the first turn; single steps")
def turn_starts_at_position_zero() -> Iterator[None]:
    """A call with several tokens is taken for a prompt, and its positions start at 0."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        return forward(module, x, positions - positions[:, :1] if positions.shape[-1] > 1 else positions)

    with rotary(change):
        yield


@fault(
    "KV-11",
    "kv_cache/test_reuse.py",
    "goes_on_with_a_chat and dynamic-plain-llama-gqa",
    source="our own: a step always has its last token to feed",
    unseen="the first turn; calls of the model",
)
def next_turn_feeds_the_last_token_again() -> Iterator[None]:
    """`generate` on the cache of an earlier turn feeds one more token than is new: the last that is cached."""
    patches.reads("prepare_inputs_for_generation", "next_sequence_length")

    def change(original: Any, model: Any, ids: Tensor, next_sequence_length: int | None = None, **more: Any) -> Any:
        if more.get("is_first_iteration") and patches.cached(more) and next_sequence_length is not None:
            next_sequence_length += 1
        return original(model, ids, next_sequence_length=next_sequence_length, **more)

    with patches.generation("prepare_inputs_for_generation", change):
        yield


@contextmanager
def _longest_so_far(rotary_class: Any) -> Iterator[None]:
    """A rotary module scales every text as it scaled the longest that it has seen."""
    forward: Callable[..., Any] = vars(rotary_class)["forward"]
    longest: dict[int, Tensor] = {}

    def patched(self: Any, x: Tensor, position_ids: Tensor, *args: Any, **more: Any) -> Any:
        top = position_ids.amax()[None, None]
        longest[id(self)] = torch.maximum(longest.get(id(self), top), top)
        extended = torch.cat([position_ids, longest[id(self)].expand(len(position_ids), 1)], 1)
        return tuple(t[:, :-1] for t in forward(self, x, extended, *args, **more))

    with swapped(rotary_class, "forward", patched):
        yield


@fault(
    "KV-20",
    "kv_cache/test_history.py",
    "dynamic-ntk-float32-dynamic-plain",
    source="https://github.com/huggingface/transformers/pull/33129",
    unseen="the first request; texts within the trained length",
)
def stretched_frequencies_stay() -> Iterator[None]:
    """Dynamic NTK's base, once stretched for a long text, is never put back."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    with _longest_so_far(LlamaRotaryEmbedding):
        yield


@fault(
    "KV-20",
    "kv_cache/test_history.py",
    "longrope-float32-dynamic-plain",
    source="https://github.com/vllm-project/vllm/issues/27414",
    unseen="the first request; texts within the trained length",
)
def long_factors_stay() -> Iterator[None]:
    """LongRoPE, once switched to its long factors, stays there."""
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    with _longest_so_far(Phi3RotaryEmbedding):
        yield


@fault("KV-11", *TALK, source="our own: positions that are read off the cache", unseen="no padding; the first turn")
def next_turn_of_a_padded_batch_counts_slots() -> Iterator[None]:
    """On a cache of an earlier turn `generate` numbers a padded row's tokens by slot."""

    def change(original: Any, model: Any, ids: Tensor, keywords: dict[str, Any]) -> Tensor:
        positions: Tensor = original(model, ids, keywords)
        slots = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
        return slots if patches.cached(keywords) else positions

    with patches.generation("_prepare_position_ids_for_generation", change):
        yield


@fault("KV-11", *TALK, source="our own: `if ids.shape[1] == 1: # a text begins`", unseen="turns that add a token")
def turn_that_adds_nothing_starts_over() -> Iterator[None]:
    """A turn of a single new token, as where an answer is to go on, is given the position of a text's first."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        inputs = original(model, *args, **more)
        begins = more.get("is_first_iteration") and patches.cached(more) and inputs["input_ids"].shape[1] == 1
        if begins and inputs.get("position_ids") is not None:
            inputs["position_ids"] = torch.zeros_like(inputs["position_ids"])
        return inputs

    with patches.generation("prepare_inputs_for_generation", change):
        yield


@fault(
    "KV-11",
    *IN_CHUNKS,
    source="https://github.com/huggingface/transformers/blob/v5.22.0/src/transformers/generation/utils.py",
    unseen="the first turn; turns in one piece",
)
def chunks_of_a_later_turn_are_counted_from_zero() -> Iterator[None]:
    """Where a later turn comes in chunks, their positions are cut as if nothing were cached."""
    turns: list[int] = []

    def prefill(original: Any, model: Any, ids: Tensor, config: Any, keywords: dict[str, Any], **more: Any) -> Any:
        turns.append(patches.cached(keywords) if config.prefill_chunk_size else 0)
        try:
            return original(model, ids, config, keywords, **more)
        finally:
            turns.pop()

    def prepare(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        if turns and turns[-1] and more.get("position_ids") is not None:
            more["position_ids"] = more["position_ids"] - turns[-1]
        return original(model, *args, **more)

    with patches.generation("_prefill", prefill), patches.generation("prepare_inputs_for_generation", prepare):
        yield
