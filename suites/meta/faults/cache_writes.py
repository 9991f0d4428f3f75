"""Faults of writing: a cache hands on, or lets be seen, something other than what it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, patches, swapped

DECODE = ("kv_cache/test_decode.py", "prompt-33-dynamic-plain-llama-gqa-float32")
HALF = ("kv_cache/test_written.py", "full-prompt-dynamic-plain-bfloat16")
DEEP = ("kv_cache/test_written.py", "deep-dynamic-plain-float32")
FILE, FED = "kv_cache/test_chunks.py", "float32-dynamic-plain"
CHUNKS = ("kv_cache/test_chunks.py", "chunks-64-dynamic-plain-llama-gqa-float32")
SPARE = ("kv_cache/test_unwritten.py", "slots and spare-float32-static-spare-llama-gqa")
DROPPED = ("kv_cache/test_unwritten.py", "slots and dropped-float32-static-spare-llama-gqa")
NAN = ("kv_cache/test_unwritten.py", "nan and dropped-float32-dynamic-plain-llama-gqa")
WINDOW = ("kv_cache/test_window.py", "sliding-prompt-dynamic")
CLAIM = ("unwritten-nan",)
GROWING = ("DynamicLayer",)
SLIDING = ("DynamicSlidingWindowLayer",)
FIXED = ("StaticLayer",)


@fault(
    "KV-1",
    "kv_cache/test_decode.py",
    "prompt-250-dynamic-plain-llama-gqa",
    source="our own: a block of 256 tokens that is full is flushed before it is read",
    unseen="fewer than 256 tokens; every layer but the last",
)
def last_layer_loses_a_token_beyond_a_block() -> Iterator[None]:
    """In the last layer alone, the token that fills a block of 256 is overwritten by the next."""

    def change(update: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        keys, values = update(layer, k, v, *args, **more)
        if last.setdefault("first", layer) is not layer and keys.shape[-2] > 256:
            keys[..., 255, :] = keys[..., 256, :]
        return keys, values

    last: dict[str, Any] = {}
    with patches.layers(change, *GROWING):
        yield


@fault(
    "KV-2",
    "kv_cache/test_written.py",
    "sliding-steps-static and float32",
    source="https://github.com/huggingface/transformers/issues/37574",
    unseen="texts that stay shorter than the window, prompts that fill it",
)
def static_window_rolls_one_step_early() -> Iterator[None]:
    """On the step that fills the window the oldest token is rolled out already, and a slot of zeros is handed on."""

    def change(update: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        filling = layer.is_initialized and k.shape[-2] == 1 and layer.get_seq_length() == layer.max_cache_len - 1
        keys, values = update(layer, k, v, *args, **more)
        if not filling:
            return keys, values
        for kept in (layer.keys, layer.values):
            newest = kept[:, :, -1:].clone()
            kept.copy_(kept.roll(-1, -2))
            kept[:, :, -2], kept[:, :, -1:] = 0, newest
        return layer.keys, layer.values

    with patches.layers(change, "StaticSlidingWindowLayer"):
        yield


@fault(
    "KV-2",
    "kv_cache/test_written.py",
    "full-steps-dynamic-float32",
    source="our own: a write with the index of the first row",
    unseen="batch 1; prompts",
)
def rows_are_written_into_the_first() -> Iterator[None]:
    """While decoding, every row of a batch stores the first row's value, and its own key."""

    def change(cache: Any, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        return k, v[:1].expand_as(v) if k.shape[-2] == 1 else v

    with patches.written(change):
        yield


@fault(
    "KV-2",
    "kv_cache/test_written.py",
    "full-long-static-spare-float32",
    source="our own: an index of 9 bits",
    unseen="fewer than 512 tokens; the first key head",
)
def slots_wrap_beyond_512() -> Iterator[None]:
    """The second key head's slots are numbered modulo 512."""

    def change(update: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        keys, values = update(layer, k, v, *args, **more)
        length = int(layer.get_seq_length())
        if length > 512:
            keys[:, 1, (length - 1) % 512] = k[:, 1, -1]
        return keys, values

    with patches.layers(change, *FIXED):
        yield


@fault("KV-2", *HALF, source="our own: one half precision for all caches", unseen="bfloat16 up to 65,504; float16")
def bfloat16_is_cached_as_float16() -> Iterator[None]:
    """What is half precision is kept in float16, whichever half it is: what is large in bfloat16 becomes infinite."""

    def change(cache: Any, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        return (k.half().to(k.dtype), v.half().to(v.dtype)) if k.dtype == torch.bfloat16 else (k, v)

    with patches.written(change):
        yield


@fault("KV-2", *HALF, source="our own: a bit that is kept for a flag", unseen="keys; float32 and float16")
def bfloat16_values_lose_a_bit() -> Iterator[None]:
    """Values in bfloat16 lose the last bit of their significand."""

    def change(cache: Any, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        return k, (v.view(torch.int16) & -2).view(torch.bfloat16) if v.dtype == torch.bfloat16 else v

    with patches.written(change):
        yield


@fault("KV-2", *DEEP, source="our own: a layer's index of 5 bits", unseen="32 layers and fewer; keys")
def layers_wrap_beyond_32() -> Iterator[None]:
    """Layer 32 + n is handed the values of layer n."""
    given: dict[int, Tensor] = {}

    def change(cache: Any, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        given[layer] = v
        return k, given.get(layer - 32, v)

    with patches.written(change):
        yield


@fault("KV-2", *DEEP, source="our own: a head's index of 3 bits", unseen="8 key heads and fewer")
def key_heads_wrap_beyond_8() -> Iterator[None]:
    """Key head 8 + n stores what head n does."""

    def change(cache: Any, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        head = torch.arange(k.shape[1], device=k.device) % 8
        return k[:, head], v[:, head]

    with patches.written(change):
        yield


@fault("KV-2", *DEEP, source="our own: a row's index of 3 bits", unseen="8 rows and fewer; prompts; keys")
def rows_wrap_beyond_8() -> Iterator[None]:
    """While decoding, row 8 + n stores the value of row n."""

    def change(cache: Any, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        return k, v[torch.arange(len(v), device=v.device) % 8] if v.shape[-2] == 1 else v

    with patches.written(change):
        yield


@fault(
    "KV-3",
    *CHUNKS,
    source="our own: is_causal=True for a chunk",
    unseen="a prompt that goes in whole",
)
def mask_of_a_chunk_starts_at_the_first_key() -> Iterator[None]:
    """A chunk's causal mask is aligned with the first key in the cache, not with the last."""

    def change(build: Any, keywords: dict[str, Any]) -> Any:
        mask = build(**keywords)
        if mask is None or mask.shape[-2] == 1 or mask.shape[-2] == mask.shape[-1]:
            return mask
        seen = torch.ones_like(mask, dtype=torch.bool).tril()
        return seen if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)

    with patches.masks(change):
        yield


@fault(
    "KV-3",
    *CHUNKS,
    source="our own: a copy of n - 1 tokens",
    unseen="a prompt that goes in whole; single steps",
)
def chunk_loses_its_last_token() -> Iterator[None]:
    """When several tokens join a cache that is not empty, the last key is a copy of the one before."""

    def change(update: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        if k.shape[-2] > 1 and layer.get_seq_length():
            k = torch.cat([k[..., :-1, :], k[..., -2:-1, :]], -2)
        return update(layer, k, v, *args, **more)

    with patches.layers(change, *GROWING):
        yield


@contextmanager
def _chunk(change: Callable[[Tensor, dict[str, Any]], Tensor]) -> Iterator[None]:
    """Patch what `generate` feeds of a prompt that goes in by pieces, but the first. change(ids, keywords) -> ids."""

    def prepare(original: Any, model: Any, ids: Tensor, *args: Any, **more: Any) -> Any:
        past, real = patches.cached(more), more.get("attention_mask")
        if past and real is not None and ids.shape[1] > 1 and past + ids.shape[1] == real.shape[1]:
            ids = change(ids, more)
        return original(model, ids, *args, **more)

    with patches.generation("prepare_inputs_for_generation", prepare):
        yield


@fault("KV-3", FILE, f"padded-7-{FED}-llama-gqa", source="our own: a slice of row 0", unseen="one row; the first chunk")
def chunks_are_the_first_rows() -> Iterator[None]:
    """`generate` feeds every row of a batch the first row's tokens from the second chunk on."""
    with _chunk(lambda ids, more: ids[:1].expand_as(ids)):
        yield


@fault("KV-3", FILE, f"padded-7-{FED}-bigcode-mqa", source="our own: cache positions", unseen="no padding; RoPE")
def chunks_count_padding_as_positions() -> Iterator[None]:
    """`generate` numbers a padded row's tokens by slot from the second chunk on."""

    def change(ids: Tensor, more: dict[str, Any]) -> Tensor:
        end = more["attention_mask"].shape[1]
        more["position_ids"] = torch.arange(end - ids.shape[1], end, device=ids.device).expand_as(ids)
        return ids

    with _chunk(change):
        yield


@fault("KV-12", *SPARE, source="https://github.com/huggingface/transformers/issues/30400", unseen="slots of zeros")
def spare_slot_is_read_ahead() -> Iterator[None]:
    """While decoding, the mask shows one slot more than there are tokens."""

    def change(build: Any, keywords: dict[str, Any]) -> Any:
        mask = build(**keywords)
        if mask is None or mask.shape[-2] != 1:
            return mask
        return mask | mask.roll(1, -1) if mask.dtype == torch.bool else torch.maximum(mask, mask.roll(1, -1))

    with patches.masks(change):
        yield


@fault("KV-12", *DROPPED, source="our own: a read that is one slot too long", unseen="no rollback")
def dropped_token_still_weighs() -> Iterator[None]:
    """The newest value is mixed with what stands in the slot after it, at a weight of one in a million."""

    def change(update: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        keys, values = update(layer, k, v, *args, **more)
        length = int(layer.get_seq_length())
        mixed = values.clone()
        mixed[:, :, length - 1] += 1e-6 * values[:, :, min(length, values.shape[2] - 1)]
        return keys, mixed

    with patches.layers(change, *FIXED):
        yield


def _touched(layer: Any, name: str) -> Tensor | float:
    """Nothing, unless the storage behind what a layer holds has a NaN in it."""
    held = getattr(layer, name)
    if held is None or not held.numel():
        return 0.0
    whole = torch.empty(0, dtype=held.dtype, device=held.device).set_(held.untyped_storage())
    return (whole * 0).sum()


@fault("KV-13", *NAN, source="our own: blocks that are read to their end", unseen="finite numbers", claims=CLAIM)
def keys_of_a_whole_block_are_read() -> Iterator[None]:
    """A block of keys is read to its end, and what holds no token gets a weight of zero."""

    def change(update: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        return update(layer, k + _touched(layer, "keys"), v, *args, **more)

    with patches.layers(change, *GROWING):
        yield


@fault("KV-13", *NAN, source="our own: the same, of values", unseen="finite numbers", claims=CLAIM)
def values_of_a_whole_block_are_read() -> Iterator[None]:
    """A block of values is read to its end, and what holds no token gets a weight of zero."""

    def change(update: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        return update(layer, k, v + _touched(layer, "values"), *args, **more)

    with patches.layers(change, *GROWING):
        yield


@fault("KV-19", *WINDOW, source="our own: a cut that is made when the cache is copied", unseen="outputs: masks hide it")
def window_is_cut_when_it_doubles() -> Iterator[None]:
    """A layer with a window keeps old tokens until there are twice as many as it needs."""

    def change(update: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        held = layer.keys, layer.values
        keys, values = update(layer, k, v, *args, **more)
        if held[0] is not None and held[0].shape[-2] < 2 * layer.sliding_window:
            layer.keys, layer.values = torch.cat([held[0], k], -2), torch.cat([held[1], v], -2)
        return keys, values

    with patches.layers(change, *SLIDING):
        yield


@fault("KV-19", *WINDOW, source="our own: a view that holds on to its base", unseen="outputs; the sizes of tensors")
def window_holds_on_to_the_prompt() -> Iterator[None]:
    """Each layer remembers the keys of its longest call."""

    def change(update: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        layer.longest = max(getattr(layer, "longest", k), k, key=lambda t: t.shape[-2])
        return update(layer, k, v, *args, **more)

    with patches.layers(change, *SLIDING):
        yield


@fault("KV-1", *DECODE, source="https://github.com/skyzh/tiny-llm/pull/46", unseen="prompts of one token")
def decoding_jumps_by_the_prompt() -> Iterator[None]:
    """The offset of the first step counts the prompt twice, and so does that of every later one."""
    from suites.meta.faults.positions import rotary

    prompt: dict[str, int] = {}

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        if positions.shape[-1] > 1:
            prompt["length"] = positions.shape[-1]
            return forward(module, x, positions)
        return forward(module, x, positions + prompt.get("length", 0))

    with rotary(change):
        yield


@fault("KV-1", *DECODE, source="https://github.com/ml-explore/mlx-lm/issues/1699", unseen="batch 1")
def queries_turn_after_the_cache_has_moved_on() -> Iterator[None]:
    """The cache's update moves the offset that queries then read: they are rotated by as many tokens too far."""
    from transformers.models.llama import modeling_llama

    from suites.meta.faults.positions import rotary

    moved: dict[str, Any] = {}

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        moved["tables"] = forward(module, x, positions + positions.shape[-1])
        return forward(module, x, positions)

    original = modeling_llama.apply_rotary_pos_emb

    def apply(q: Tensor, k: Tensor, *args: Any, **more: Any) -> Any:
        turned, keys = original(q, k, *args, **more)
        return (original(q, k, *moved["tables"])[0] if len(q) > 1 else turned), keys

    with rotary(change), swapped(modeling_llama, "apply_rotary_pos_emb", apply):
        yield


@fault(
    "KV-3", FILE, f"size-64-{FED}-llama-gqa", source="our own: n // size, and n % size of them", unseen="a remainder"
)
def prompt_of_whole_chunks_loses_the_last() -> Iterator[None]:
    """The last chunk is taken to be the remainder: a prompt that is some whole chunks long loses one."""

    def change(original: Any, model: Any, ids: Tensor, config: Any, keywords: dict[str, Any], **more: Any) -> Any:
        size, kept = config.prefill_chunk_size, dict(keywords)
        if size and ids.shape[1] > size and ids.shape[1] % size == 0:
            ids = ids[:, :-size]
        found = original(model, ids, config, keywords, **more)
        keywords.update({name: value for name, value in kept.items() if name in ("attention_mask", "position_ids")})
        return found

    with patches.generation("_prefill", change):
        yield


@fault(
    "KV-3", FILE, f"size-7-{FED}-llama-gqa", source="our own: `if ids.shape[1] == 1: # a step`", unseen="larger chunks"
)
def last_chunk_of_one_token_is_a_step() -> Iterator[None]:
    """A last chunk of a single token is counted as cached before it goes in."""

    def change(original: Any, model: Any, ids: Tensor, *args: Any, **more: Any) -> Any:
        inputs = original(model, ids, *args, **more)
        alone = ids.shape[1] == 1 and patches.cached(more) and more.get("is_first_iteration", True)
        if alone and inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"] + 1
        return inputs

    with patches.generation("prepare_inputs_for_generation", change):
        yield
