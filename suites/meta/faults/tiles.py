"""Faults of indices: tiles, their edges, and where heads, rows, queries and keys stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from suites.meta.faults import fault, patches

FLAGS = ("attention/test_mask.py", "flags_show and sdpa-float32 and not window")
ACCURATE = "attention/test_accuracy.py"
POINTED = ("attention/test_retrieval.py", "sdpa-float32 and (gqa-129 or full-257 or mqa-1000)")
STEP = (ACCURATE, "sdpa-float32 and decode-heads")
LONG_STEP = (ACCURATE, "sdpa-float32 and decode-scale")
TILE = 128


@fault(
    "ATTN-3",
    *FLAGS,
    source="https://github.com/pytorch/pytorch/issues/162588",
    unseen="texts of up to 65,536 tokens there; here the limit is 128, so that a CPU sees the class",
)
def query_index_wraps() -> Iterator[None]:
    """The query's index is held in too few bits: rows from 128 on are masked like row i mod 128."""
    with patches.mask(lambda seen: seen[..., torch.arange(seen.shape[-2]) % TILE, :]):
        yield


@fault(
    "ATTN-3",
    *FLAGS,
    source="https://github.com/thu-ml/SageAttention/pull/372",
    unseen="prompts without a cache",
)
def chunk_is_aligned_with_the_first_key() -> Iterator[None]:
    """Where queries are fewer than keys, the first query sees the first key only, as if no cache were there."""

    def change(seen: Tensor) -> Tensor:
        return seen if seen.shape[-2] == seen.shape[-1] else seen & torch.ones_like(seen).tril()

    with patches.mask(change):
        yield


@fault("ATTN-3", *FLAGS, source="our own: < where <= is meant", unseen="full attention; decoding")
def boundary_is_one_key_late() -> Iterator[None]:
    """A query sees the key after its last."""
    with patches.mask(lambda seen: seen | F.pad(seen, (1, -1))):
        yield


@fault("ATTN-3", *FLAGS, source="our own: causality as the default", unseen="causal calls")
def call_without_a_mask_is_causal() -> Iterator[None]:
    """Where there is no mask, the kernel is causal, asked or not."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return call(q, k, v, **more | {"is_causal": more.get("attn_mask") is None})

    with patches.kernel(change):
        yield


@fault(
    "ATTN-3",
    "attention/test_mask.py",
    "flags_show and sdpa-float32 and window",
    source="our own: a full tile and a partial one confused",
    unseen="masks that follow the tiles",
)
def partial_tiles_are_taken_whole() -> Iterator[None]:
    """A tile of 8 keys of which a query sees one is seen as a whole."""

    def change(seen: Tensor) -> Tensor:
        padded = F.pad(seen, (0, -seen.shape[-1] % 8))
        whole = padded.unflatten(-1, (-1, 8)).any(-1).repeat_interleave(8, -1)
        return whole[..., : seen.shape[-1]]

    with patches.mask(change):
        yield


@fault(
    "ATTN-1",
    "attention/test_accuracy.py",
    "sdpa-flash-cpu-float32 and gqa-100",
    source="https://github.com/flashinfer-ai/flashinfer/pull/5090",
    unseen="a number of keys that is a multiple of the tile",
)
def keys_beyond_the_end_are_counted() -> Iterator[None]:
    """The last tile is filled up with keys of zeros: they score 0, weigh something, and bring nothing."""

    def change(scores: Tensor, seen: Tensor) -> Tensor:
        padded = F.pad(scores.masked_fill(~seen, -torch.inf), (0, -scores.shape[-1] % 64))
        return torch.softmax(padded, -1)[..., : scores.shape[-1]]

    with patches.softmax(change):
        yield


@fault("ATTN-8", *POINTED, source="our own: an index of 7 bits", unseen="up to 128 keys")
def key_index_wraps() -> Iterator[None]:
    """The key's index is held in too few bits: from 128 on, keys and values are those of j mod 128."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        index = torch.arange(k.shape[-2], device=k.device) % TILE
        return call(q, k[..., index, :], v[..., index, :], **more)

    with patches.kernel(change):
        yield


@fault(
    "ATTN-8",
    *POINTED,
    source="our own, after https://github.com/pytorch/pytorch/issues/191937",
    unseen="lengths that are not a tile and one more",
)
def lone_key_of_the_last_tile_is_dropped() -> Iterator[None]:
    """Where the last tile holds a single key, it is not read."""

    def change(seen: Tensor) -> Tensor:
        keys = seen.shape[-1]
        return seen & (torch.arange(keys, device=seen.device) < keys - 1) if keys % TILE == 1 else seen

    with patches.mask(change):
        yield


@fault("ATTN-8", *POINTED, source="our own: keys // tile tiles", unseen="a number of keys that is a multiple of it")
def last_tile_is_dropped() -> Iterator[None]:
    """Keys beyond the last whole tile are not read."""

    def change(seen: Tensor) -> Tensor:
        keys = seen.shape[-1]
        whole = keys - keys % TILE if keys > TILE else keys
        return seen & (torch.arange(keys, device=seen.device) < whole)

    with patches.mask(change):
        yield


@fault("ATTN-8", *POINTED, source="our own: a head stride that is added twice", unseen="MQA; the first tile")
def values_are_those_of_the_next_head() -> Iterator[None]:
    """After the first tile the values are read from the next key head, the keys from the right one."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return call(q, k, torch.cat([v[..., :TILE, :], v[..., TILE:, :].roll(-1, 1)], -2), **more)

    with patches.kernel(change):
        yield


@fault(
    "ATTN-8",
    "attention/test_retrieval.py",
    "sdpa-float32 and gqa-2113",
    source="our own: queries in two launches, the second with the first's offset of keys",
    unseen="prompts of up to 2,048 tokens; queries that point at no key of the first tile",
)
def first_tile_is_skipped_by_late_queries() -> Iterator[None]:
    """Queries from 2,048 on do not read the first 64 keys."""

    def change(seen: Tensor) -> Tensor:
        queries, keys = (torch.arange(n, device=seen.device) for n in seen.shape[-2:])
        return seen & ((queries[:, None] < 2048) | (keys >= 64))

    with patches.mask(change):
        yield


@fault(
    "ATTN-1",
    ACCURATE,
    "sdpa-float32 and exact-128",
    source="our own: length % tile where 0 means a whole tile",
    unseen="prompts whose length is no multiple of the tile",
)
def newest_key_of_whole_tiles_is_dropped() -> Iterator[None]:
    """Where a prompt fills its tiles exactly, the last query misses the newest key."""

    def change(seen: Tensor) -> Tensor:
        queries, keys = seen.shape[-2:]
        if queries == keys and keys % TILE == 0:
            seen = seen.clone()
            seen[..., -1, -1] = False
        return seen

    with patches.mask(change):
        yield


@fault(
    "ATTN-1",
    ACCURATE,
    "sdpa-float32 and groups-of-7",
    source="our own: a tile of four query heads for each key head",
    unseen="up to four query heads to a key head; Qwen2.5-7B has seven, Llama-3-70B eight",
)
def heads_beyond_four_of_a_group_are_the_fourth() -> Iterator[None]:
    """A tile serves four query heads of a group: the fifth and later have the fourth's output."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        group = q.shape[1] // k.shape[1]
        out = call(q, k, v, **more).unflatten(1, (-1, group))
        return out[:, :, torch.arange(group).clamp(max=3)].flatten(1, 2)

    with patches.kernel(change):
        yield


@fault(
    "ATTN-1",
    ACCURATE,
    "sdpa-float32 and heads-40",
    source="our own: a head's index of four bits",
    unseen="up to 16 heads",
)
def head_index_wraps() -> Iterator[None]:
    """The head's index is held in too few bits: heads from 16 on have the output of head h mod 16."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return call(q, k, v, **more)[:, torch.arange(q.shape[1]) % 16]

    with patches.kernel(change):
        yield


@fault(
    "ATTN-1",
    ACCURATE,
    "sdpa-float32 and rows-9",
    source="our own: a row's index of three bits",
    unseen="batches of up to eight",
)
def row_index_wraps() -> Iterator[None]:
    """The row's index is held in too few bits: rows of a batch from 8 on have the output of row b mod 8."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return call(q, k, v, **more)[torch.arange(len(q)) % 8]

    with patches.kernel(change):
        yield


@fault(
    "ATTN-1",
    ACCURATE,
    "sdpa-float32 and d72",
    source="our own: head_dim // 16 fragments",
    unseen="a head_dim that is a multiple of 16",
)
def last_half_fragment_of_features_is_dropped() -> Iterator[None]:
    """Features beyond the last whole 16 count in no score."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        features = q.shape[-1]
        q = q * (torch.arange(features, device=q.device) < features - features % 16)
        return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault("ATTN-1", *STEP, source="our own: four heads of a group to a tile", unseen="groups of up to four; prompts")
def fifth_head_of_a_group_is_the_fourth_in_a_step() -> Iterator[None]:
    """While decoding, the fifth query head of a group and those after it have the fourth's output."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        out, group = call(q, k, v, **more), q.shape[1] // k.shape[1]
        head = torch.arange(q.shape[1])
        return out[:, head - (head % group - 3).clamp(min=0)] if q.shape[2] == 1 else out

    with patches.kernel(change):
        yield


@fault("ATTN-1", *STEP, source="our own: a register too few", unseen="a head_dim of up to 64; prompts")
def a_step_reads_64_features() -> Iterator[None]:
    """While decoding, features from the 64th on count in no score."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        if q.shape[2] == 1:
            q = q * (torch.arange(q.shape[3], device=q.device) < 64)
        return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault("ATTN-1", *STEP, source="our own: a head's index of four bits", unseen="up to 16 key heads")
def key_head_index_wraps() -> Iterator[None]:
    """Keys of head 16 + n are read where head n's are."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return call(q, k[:, torch.arange(k.shape[1]) % 16], v, **more)

    with patches.kernel(change):
        yield


@fault("ATTN-1", *STEP, source="our own: a head's index of six bits", unseen="up to 64 heads")
def heads_wrap_beyond_64() -> Iterator[None]:
    """Query head 64 + n has the output of head n."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return call(q, k, v, **more)[:, torch.arange(q.shape[1]) % 64]

    with patches.kernel(change):
        yield


@fault("ATTN-1", *STEP, source="our own: a row's index of four bits", unseen="batches of up to 16; prompts")
def rows_of_a_step_wrap_beyond_16() -> Iterator[None]:
    """While decoding, row 16 + n of a batch is answered with row n's keys."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return call(q, k[torch.arange(len(k)) % 16] if q.shape[2] == 1 else k, v, **more)

    with patches.kernel(change):
        yield


@fault(
    "ATTN-1",
    *LONG_STEP,
    source="https://github.com/vllm-project/vllm/blob/v0.6.0/csrc/attention/attention_kernels.cu, tmp_out",
    unseen="steps on up to 512 keys; bfloat16",
)
def splits_of_a_step_are_kept_in_bfloat16() -> Iterator[None]:
    """Beyond 512 keys a step is split, and each part's output waits in bfloat16 until all are joined."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        out = call(q, k, v, **more)
        if q.shape[2] != 1 or k.shape[2] <= 512:
            return out
        scores, values = patches.scores_of(q, k, more), v.float().repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = scores.masked_fill(~patches.shown(q, k, more), -torch.inf)
        parts = zip(scores.split(256, -1), values.split(256, 2), strict=True)
        joined = [(s.logsumexp(-1, keepdim=True), (s.softmax(-1) @ part).bfloat16()) for s, part in parts]
        total = scores.logsumexp(-1, keepdim=True)
        return sum(((weight - total).exp() * part for weight, part in joined), torch.zeros(())).to(q.dtype)

    with patches.kernel(change):
        yield


@fault(
    "ATTN-1",
    ACCURATE,
    "sdpa-float32 and decode-8200",
    source="our own: a fixed number of parts for a step's keys",
    unseen="steps on up to 4,096 keys; prompts",
)
def a_step_reads_32_parts_of_its_keys() -> Iterator[None]:
    """A step reads its keys in 32 parts of 128: of more, those between the first 31 parts and the last are lost."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        keys = torch.arange(k.shape[2], device=k.device)
        if q.shape[2] != 1 or len(keys) <= 32 * TILE:
            return call(q, k, v, **more)
        read = (keys < 31 * TILE) | (keys >= len(keys) - TILE)
        return call(q, k, v, **more | {"attn_mask": patches.shown(q, k, more) & read, "is_causal": False})

    with patches.kernel(change):
        yield
