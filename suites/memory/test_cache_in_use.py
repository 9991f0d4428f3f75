"""A key-value cache that `generate` makes, or that something has left, takes the bytes that arithmetic predicts."""

import pytest
import torch

from fixtures.allocations import survivors
from fixtures.caching import operate
from fixtures.decoding import decode, one_by_one
from fixtures.generation import generated, using
from fixtures.meters import storage_bytes, tensors
from fixtures.oracles.memory import kv_bytes, windows
from fixtures.paged import TOKENS_AT_ONCE, Wish
from fixtures.questions import Traffic, Usage

PROMPT, STEPS = 40, 3
UNWINDOWED = (frozenset(), frozenset({"gqa"}))
# How many tokens are left after an operation, and which rows of two.
LEFT = {"select": (PROMPT + STEPS, [1]), "reset": (0, [0, 1])}
LLAMA = pytest.mark.applies(architecture=("llama",))
WAYS = {"a prompt": {}, "a prompt in chunks": {"prefill_chunk_size": 16}}
CHANGES = [Usage(word, needs=frozenset({"exact", word})) for word in LEFT]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("change", CHANGES, ids=str)
# Where rows are selected, a window's layer also drops the one slot that it holds beyond it.
@pytest.mark.applies(needs=UNWINDOWED, tier=("standard",), real=(False,))
def test_what_left_a_cache_takes_no_bytes(case, kv_cache, dtype, change, device, model, make_ids, judge):
    """MEM-2: a cache MUST take exactly 2 · kv_heads · head_dim · itemsize bytes for each token it has to keep."""
    length, (kept, rows) = PROMPT + STEPS, LEFT[change.name]
    cache = kv_cache.make(model.config, 2, length)

    decode(model, cache, make_ids(2, length), one_by_one(PROMPT, length))
    operate(cache, change.name, rows=torch.tensor(rows, device=device))

    slots = [kv_cache.slots(kept, length, window) for window in windows(model.config)]
    predicted = kv_bytes(model.config, batch=len(rows), slots=slots, itemsize=dtype.itemsize)
    judge.exactly("bytes of the cache", storage_bytes(tensors(cache)), predicted, unit="bytes")


@torch.no_grad()
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=LLAMA)], ids=["float32", "bfloat16"]
)
@pytest.mark.applies(tier=("standard",), real=(False,))
def test_a_cache_of_generate_takes_the_predicted_bytes(case, kv_cache, dtype, device, make_ids, judge):
    """MEM-2: a cache MUST take exactly 2 · kv_heads · head_dim · itemsize bytes for each token it has to keep."""
    batch, length = 2, PROMPT + STEPS - 1  # the last token of an answer is not written
    # Loaded anew: a static cache that `generate` makes is as long as the longest that it made for this model.
    model, ids, seen = case.load(dtype, device), make_ids(batch, PROMPT), []
    hook = model.register_forward_hook(
        lambda module, args, out: seen.append(storage_bytes(tensors(out.past_key_values)))
    )

    slots = [kv_cache.slots(length, length, window) for window in windows(model.config)]
    predicted = kv_bytes(model.config, batch=batch, slots=slots, itemsize=dtype.itemsize)
    with hook:
        for what, how in WAYS.items():
            generated(model, ids, STEPS, **how, **using(model, kv_cache, length, rows=batch))
            judge.exactly(f"bytes of the cache of {what}", seen[-1], predicted, unit="bytes")


# What lies beside pages hangs on what the serving thread is at: at most so much of 22, as a share of what is allowed on
# either side of the middle. 2026-11-29.
ROOMS, HEALTHY = (1024, 2048), 0.14
HELD = [Traffic("held", lengths=(33, 5), count=4, needs=frozenset({"paged", "managed", "room"}))]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=["bfloat16"])
@pytest.mark.parametrize("traffic", HELD, ids=str)
@pytest.mark.applies(architecture=("llama",), real=(False,), tier=("standard",))
@pytest.mark.optional("paged attention")
def test_pages_take_the_predicted_bytes(case, attention, dtype, traffic, device, model, make_ids, judge):
    """MEM-2: a cache MUST take exactly 2 · kv_heads · head_dim · itemsize bytes for each token it has to keep."""
    texts, held = make_ids(batch=len(traffic.lengths), length=max(traffic.lengths)), []
    wishes = [Wish(t[:n].tolist(), traffic.count, 1.0) for t, n in zip(texts, traffic.lengths, strict=True)]

    for room in ROOMS:
        with survivors() as added:
            attention.manage(model, wishes, room=room, meanwhile=lambda: held.append(added()))

    less, more = ROOMS
    slots = [more - less] * model.config.num_hidden_layers
    predicted = kv_bytes(model.config, batch=1, slots=slots, itemsize=dtype.itemsize)
    # Beside them: where each is to be read, in either of two kinds of layers, and a mask of all that go in at once; and
    # as much again for tables of pages, which some devices have.
    beside = 2 * (more - less) * (2 * torch.long.itemsize + TOKENS_AT_ONCE * dtype.itemsize)
    judge.between(
        "bytes of so many tokens more", held[1] - held[0], predicted, predicted + beside, "bytes", healthy=HEALTHY
    )
