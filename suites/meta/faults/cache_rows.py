"""Faults of batches and beams: a row goes on as another one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, patches, swapped

PADDED = ("kv_cache/test_batches.py", "left-padded-dynamic-plain-llama-gqa-float32")
ANSWERED = ("kv_cache/test_batches.py", "answered_as_alone and dynamic-plain-llama-gqa")
SORTED = ("kv_cache/test_batches.py", "sorted-dynamic-plain-llama-gqa-float32")
LONE = ("kv_cache/test_batches.py", "lone-dynamic-plain-llama-gqa-float32")
SHRINKS = ("kv_cache/test_batches.py", "shrinks-dynamic-plain-llama-gqa-float32")
TURNS = ("kv_cache/test_batches.py", "turns-dynamic-plain-llama-gqa-float32")
GROWS = ("kv_cache/test_batches.py", "grows-dynamic-plain-llama-gqa-float32")
FOLLOWS = ("kv_cache/test_beams.py", "follows and dynamic-plain-llama-gqa")
SEARCH = ("kv_cache/test_beams.py", "search and dynamic-llama-gqa")
LACKS = ("kv_cache/test_rollback.py", "static-spare-llama-gqa")
GROWING = ("DynamicLayer",)


@fault("KV-4", *PADDED, source="our own: a mask that one query does without", unseen="prompts; no padding")
def padding_is_forgotten_while_decoding() -> Iterator[None]:
    """A single query sees all slots of the cache, padding too."""

    def change(build: Any, keywords: dict[str, Any]) -> Any:
        mask = build(**keywords)
        if mask is None or mask.shape[-2] != 1:
            return mask
        return torch.ones_like(mask) if mask.dtype == torch.bool else torch.zeros_like(mask)

    with patches.masks(change):
        yield


@fault("KV-4", *PADDED, source="our own: a mask that is broadcast over the batch", unseen="batch 1; the first row")
def rows_share_the_first_rows_mask() -> Iterator[None]:
    """While decoding, every row's padding is taken to be the first row's."""

    def change(build: Any, keywords: dict[str, Any]) -> Any:
        mask = build(**keywords)
        return mask if mask is None or mask.shape[-2] != 1 else mask[:1].expand_as(mask)

    with patches.masks(change):
        yield


@fault("KV-4", *LONE, source="our own: a mask for prompts and for single tokens", unseen="a prompt that goes in whole")
def padding_is_forgotten_in_chunks() -> Iterator[None]:
    """Several tokens that join a cache see its padding."""

    def change(build: Any, keywords: dict[str, Any]) -> Any:
        mask = build(**keywords)
        if mask is None or not 1 < mask.shape[-2] < mask.shape[-1]:
            return mask
        return build(**keywords | {"attention_mask": None})

    with patches.masks(change):
        yield


@fault("KV-4", *SORTED, source="our own: `if attention_mask[-1].all()`", unseen="batches whose last row is padded")
def last_row_decides_whether_to_mask() -> Iterator[None]:
    """Rows are taken to be sorted, the most padded last: where that one has no padding, none is hidden."""

    def change(build: Any, keywords: dict[str, Any]) -> Any:
        real = keywords.get("attention_mask")
        last = real is not None and bool(real[-1].all())
        return build(**keywords | {"attention_mask": None} if last else keywords)

    with patches.masks(change):
        yield


@fault("KV-4", *LONE, source="our own: a batch of one has nothing to be padded to", unseen="two rows and more")
def lone_row_sees_its_padding() -> Iterator[None]:
    """A lone request that was padded to a bucket's width sees its padding."""

    def change(build: Any, keywords: dict[str, Any]) -> Any:
        real = keywords.get("attention_mask")
        lone = real is not None and len(real) == 1
        return build(**keywords | {"attention_mask": None} if lone else keywords)

    with patches.masks(change):
        yield


@fault("KV-4", *LONE, source="our own: a count of seven bits", unseen="rows padded by up to 127 slots")
def padding_wraps_beyond_127() -> Iterator[None]:
    """How many slots of a row are padding is counted modulo 128, and the last of them are seen."""

    def change(build: Any, keywords: dict[str, Any]) -> Any:
        real = keywords.get("attention_mask")
        if real is None or real.all():
            return build(**keywords)
        padded = (real.cumsum(1) == 0).sum(1, keepdim=True) % 128
        return build(
            **keywords | {"attention_mask": (torch.arange(real.shape[1], device=real.device) >= padded).to(real.dtype)}
        )

    with patches.masks(change):
        yield


@fault("KV-5", *TURNS, source="https://github.com/huggingface/transformers/issues/34232", unseen="greedy decoding")
def selected_values_are_keys() -> Iterator[None]:
    """Where rows are selected, values are made of the keys."""

    def change(select: Any, layer: Any, indices: Tensor) -> None:
        select(layer, indices)
        layer.values = layer.keys.clone()

    with patches.layers(change, *GROWING, method="batch_select_indices"):
        yield


@fault("KV-5", *SHRINKS, source="https://github.com/jundot/omlx/issues/2172", unseen="batches that never shrink")
def shrunk_batch_appends_too_early() -> Iterator[None]:
    """After a batch has shrunk, new tokens overwrite the one three slots before the end."""

    def select(original: Any, layer: Any, indices: Tensor) -> None:
        original(layer, indices)
        layer.early = 3

    def update(original: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        keys, values = original(layer, k, v, *args, **more)
        if early := getattr(layer, "early", 0):
            keys[..., -1 - early, :], values[..., -1 - early, :] = k[..., 0, :], v[..., 0, :]
        return keys, values

    with patches.layers(select, *GROWING, method="batch_select_indices"), patches.layers(update, *GROWING):
        yield


@fault("KV-5", *GROWS, source="our own: repeat for repeat_interleave", unseen="a batch of one")
def repeated_rows_are_tiled() -> Iterator[None]:
    """Rows are repeated one batch after the other, in the first layer's values alone."""

    def change(repeat: Any, layer: Any, count: int) -> None:
        before = layer.values
        repeat(layer, count)
        layer.values = before.repeat(count, 1, 1, 1)

    with patches.layers(change, *GROWING, method="batch_repeat_interleave"):
        yield


@fault("KV-7", LACKS[0], f"no-select and {LACKS[1]}", source="our own: a slice for a selection", unseen="row 0")
def static_cache_selects_the_first_rows() -> Iterator[None]:
    """A static cache learns to select: it keeps the first rows, as many as are asked for."""
    from transformers.cache_utils import StaticLayer

    def select(self: Any, indices: Tensor) -> None:
        self.keys, self.values = self.keys[: len(indices)], self.values[: len(indices)]

    with swapped(StaticLayer, "batch_select_indices", select):
        yield


@fault("KV-7", LACKS[0], f"no-repeat and {LACKS[1]}", source="our own: repeat for repeat_interleave", unseen="batch 1")
def static_cache_repeats_by_tiling() -> Iterator[None]:
    """A static cache learns to repeat: one batch after the other."""
    from transformers.cache_utils import StaticLayer

    def repeat(self: Any, count: int) -> None:
        self.keys, self.values = self.keys.repeat(count, 1, 1, 1), self.values.repeat(count, 1, 1, 1)

    with swapped(StaticLayer, "batch_repeat_interleave", repeat):
        yield


@fault("KV-8", *FOLLOWS, source="https://github.com/huggingface/transformers/issues/34232", unseen="greedy decoding")
def reordered_values_are_keys() -> Iterator[None]:
    """Where beams are reordered, values are made of the keys."""

    def change(reorder: Any, layer: Any, order: Tensor) -> None:
        reorder(layer, order)
        layer.values = layer.keys.clone()

    with patches.layers(change, *GROWING, method="reorder_cache"):
        yield


@fault("KV-8", *FOLLOWS, source="our own: a loop over layers[1:]", unseen="beams that all stay in their place")
def first_layer_does_not_follow() -> Iterator[None]:
    """The first layer keeps its rows where they were."""
    from transformers import Cache

    def reorder(self: Any, order: Tensor) -> None:
        for layer in self.layers[1:]:
            layer.reorder_cache(order)

    with swapped(Cache, "reorder_cache", reorder):
        yield


@fault("KV-9", *SEARCH, source="our own: a cache that does not know of beams", unseen="one beam")
def beams_keep_their_old_histories() -> Iterator[None]:
    """The cache is never reordered: each beam goes on from whatever row it lands on."""
    from transformers import Cache

    with swapped(Cache, "reorder_cache", lambda self, order: None):
        yield


@fault("KV-9", *SEARCH, source="our own: an index from the step before", unseen="beams that all stay in their place")
def beams_are_reordered_a_step_late() -> Iterator[None]:
    """The order that is applied is the one of the step before."""
    from transformers import Cache

    original, late = Cache.reorder_cache, []

    def reorder(self: Any, order: Tensor) -> None:
        late.append(order.clone())
        if len(late) > 1 and len(late[-2]) == len(order):
            original(self, late[-2])

    with swapped(Cache, "reorder_cache", reorder):
        yield


@fault(
    "KV-9", *SEARCH, source="our own: tile for repeat_interleave", unseen="prompts of one length; one prompt; one beam"
)
def masks_of_prompts_are_tiled_over_their_beams() -> Iterator[None]:
    """Prompts are repeated for their beams (p0 p0 p1 p1), their masks tiled (p0 p1 p0 p1)."""
    from transformers import GenerationMixin

    original = vars(GenerationMixin)["_expand_inputs_for_generation"]  # a static method in 4.57

    def expand(self: Any, **more: Any) -> Any:
        ids, found = original.__get__(self, type(self))(**more)
        mask, beams = found.get("attention_mask"), more.get("expand_size", 1)
        if mask is not None and beams > 1:
            found["attention_mask"] = mask.unflatten(0, (-1, beams)).transpose(0, 1).flatten(0, 1)
        return ids, found

    with swapped(GenerationMixin, "_expand_inputs_for_generation", expand):
        yield


@fault("KV-9", *SEARCH, source="our own: indices without their prompt's offset", unseen="one prompt; one beam")
def beams_go_on_from_the_first_prompts() -> Iterator[None]:
    """In a batch of prompts each beam goes on from the cached history of the first prompt's beam of its number."""
    from transformers import Cache

    original, beams = Cache.reorder_cache, 3

    def reorder(self: Any, order: Tensor) -> None:
        original(self, order % beams)

    with swapped(Cache, "reorder_cache", reorder):
        yield


@fault(
    "KV-4", *ANSWERED, source="our own: a buffer for the mask that does not grow", unseen="no padding; 32 new tokens"
)
def mask_has_room_for_32_new_tokens() -> Iterator[None]:
    """`generate` hides what comes more than 32 tokens after the prompt of a padded batch."""

    def start(original: Any, model: Any, ids: Tensor, *args: Any, **more: Any) -> Any:
        model.asked = ids.shape[1]
        return original(model, ids, *args, **more)

    def grow(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        kept = original(model, *args, **more)
        if kept.get("attention_mask") is not None:
            kept["attention_mask"][:, model.asked + 32 :] = 0
        return kept

    with patches.generation("_sample", start), patches.generation("_update_model_kwargs_for_generation", grow):
        yield


@fault(
    "KV-4",
    *ANSWERED,
    source="https://github.com/microsoft/onnxruntime-genai/pull/1694",
    unseen="a token for padding that no text has",
)
def padding_is_read_off_the_ids() -> Iterator[None]:
    """What is the padding's token is hidden, though the caller's mask shows it: pad = eos, in a prompt with turns."""

    def change(original: Any, model: Any, ids: Tensor, **more: Any) -> Any:
        mask = more["attention_mask"]
        more["attention_mask"] = mask * (ids != more["generation_config"].pad_token_id).to(mask.dtype)
        return original(model, ids, **more)

    with patches.generation("generate", change):
        yield


@fault("KV-7", LACKS[0], f"full and {LACKS[1]}", source="our own: an index that is clamped", unseen="what fits; CUDA")
def full_static_cache_overwrites_its_last_slot() -> Iterator[None]:
    """A token for which a static cache has no slot takes the last one's, without a word."""

    def change(update: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        if k.shape[-2] > 1 or int(layer.get_seq_length()) < layer.max_cache_len:
            return update(layer, k, v, *args, **more)
        layer.keys[:, :, -1:], layer.values[:, :, -1:] = k, v
        return layer.keys, layer.values

    with patches.layers(change, "StaticLayer"):
        yield
