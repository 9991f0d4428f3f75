"""Tokens that are dropped leave no trace, as speculative decoding drops those that were refused."""

from functools import cache as once
from functools import partial

import pytest
import torch

from fixtures.caching import drop, operate, recording, unless_refused, write
from fixtures.decoding import decode
from fixtures.models import configured
from fixtures.questions import Usage

CROP = frozenset({"exact", "crop"})
# How long the prompt is, then how many tokens are drafted and how many of them are dropped, one round after the other.
ROUNDS = {
    "one": (33, [(1, 1)]),
    "several": (33, [(5, 5)]),
    "some": (18, [(5, 2), (5, 4), (5, 1), (5, 5)]),
    "crosses-the-window": (22, [(5, 4), (6, 1)]),
    "nothing": (12, [(4, 0), (4, 4)]),
}
USAGES = [Usage(name, needs=CROP) for name in ROUNDS]
SHAPE = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA = once(partial(configured, "llama", SHAPE))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("usage", USAGES, ids=str)
@pytest.mark.applies(real=(False,))
def test_dropped_tokens_leave_no_trace(case, kv_cache, dtype, usage, device, model, make_ids, truth, judge):
    """KV-6: after tokens are dropped from a cache, what follows MUST be as if they had never been in it."""
    prompt, rounds = ROUNDS[usage.name]
    room = prompt + sum(drafted for drafted, _ in rounds) + 3
    ids, cache = make_ids(batch=2, length=prompt), recording(kv_cache.make(model.config, 2, room))

    decode(model, cache, ids, [prompt])
    drop(cache, 0)  # while it records, every call is followed by a drop
    for drafted, dropped in rounds:
        draft = make_ids(batch=2, length=drafted)
        decode(model, cache, draft, [drafted], start=ids.shape[1])
        drop(cache, dropped)
        ids = torch.cat([ids, draft[:, : drafted - dropped]], 1)
    judge.exactly("tokens in the cache", int(cache.get_seq_length()), ids.shape[1])
    rest = make_ids(batch=2, length=3)
    logits = [decode(model, cache, rest, [1], start=ids.shape[1])]
    drop(cache, 0)
    logits.append(decode(model, cache, rest[:, 1:], [2], start=ids.shape[1] + 1))

    golden, reference = (truth(model, torch.cat([ids, rest], 1), d)[:, -3:] for d in (torch.float64, dtype))
    judge(torch.cat(logits, 1), reference, golden)


# How many of the newest tokens an operation drops, and the rows that it makes of a batch of two.
OPERATIONS = {
    "crop": (3, [0, 1]),
    "reorder": (0, [1, 1]),
    "select": (0, [1]),
    "repeat": (0, [0, 0, 1, 1]),
    "reset": (33, [0, 1]),
}
LACKING = [Usage(f"no-{word}", lacks=word) for word in OPERATIONS]


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("usage", LACKING, ids=str)
@pytest.mark.applies(real=(False,))
def test_what_is_not_offered_is_refused(case, kv_cache, dtype, usage, device, model, make_ids, truth, judge):
    """KV-7: an operation that a cache does not offer MUST be refused, and not done wrong without a word."""
    prompt, (dropped, rows) = 33, OPERATIONS[usage.lacks]
    kept, cache = torch.tensor(rows, device=device), kv_cache.make(model.config, 2, prompt + 3)
    ids, rest = make_ids(batch=2, length=prompt), make_ids(batch=len(rows), length=3)
    whole = torch.cat([ids[kept, : prompt - dropped], rest], 1)
    golden, reference = (truth(model, whole, d)[:, -3:].flatten(0, 1) for d in (torch.float64, dtype))

    def operate_and_go_on():
        operate(cache, usage.lacks, rows=kept, dropped=dropped)
        return decode(model, cache, rest, [1, 1, 1], start=prompt - dropped).flatten(0, 1)

    decode(model, cache, ids, [prompt - 3, 3])
    logits, judge.evidence["refused"] = unless_refused(operate_and_go_on, otherwise=reference)

    judge.ranked_first(logits.argmax(-1).tolist(), reference, golden, what="after it")


# On CUDA an index beyond the end stops the device for good.
FULL = [Usage("full", needs=frozenset({"exact", "spare"}), devices=frozenset({"cpu"}))]


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("usage", FULL, ids=str)
@pytest.mark.applies(real=(False,))
def test_what_does_not_fit_is_refused(case, kv_cache, dtype, usage, device, model, make_ids, truth, judge):
    """KV-7: an operation that a cache does not offer MUST be refused, and not done wrong without a word."""
    cache, room = kv_cache.make(model.config, 2, 33), kv_cache.slots(33, 33, None)
    ids = make_ids(batch=2, length=room + 2)
    golden, reference = (truth(model, ids, d)[:, -2:].flatten(0, 1) for d in (torch.float64, dtype))

    decode(model, cache, ids, [room])
    logits, judge.evidence["refused"] = unless_refused(
        lambda: decode(model, cache, ids[:, room:], [1, 1], start=room).flatten(0, 1), otherwise=reference
    )

    judge.ranked_first(logits.argmax(-1).tolist(), reference, golden, what="beyond the last slot")


@DTYPES
@pytest.mark.parametrize("usage", [Usage("no-crop", needs=frozenset({"rounds"}), lacks="crop", config=LLAMA)], ids=str)
def test_rounded_tokens_are_dropped_or_kept(kv_cache, dtype, usage, device, draw, judge):
    """KV-7: an operation that a cache does not offer MUST be refused, and not done wrong without a word."""
    cache, (prompt, drafted) = kv_cache.make(usage.config(), 2, 72), (64, 8)
    given = torch.randn(2, 2, 2, prompt + drafted, 32, generator=draw).to(device)

    def shorten():
        drop(cache, drafted)
        return torch.tensor(int(cache.get_seq_length()))

    write(cache, *given[..., :prompt, :], 0, 0)
    for token in range(prompt, prompt + drafted):
        write(cache, *given[..., token : token + 1, :], 0, token)
    left, judge.evidence["refused"] = unless_refused(shorten, otherwise=torch.tensor(prompt))

    judge.exactly("tokens left", int(left), prompt)
