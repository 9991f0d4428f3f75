"""A cache that was used before answers as a fresh one does."""

import copy

import pytest
import torch

from fixtures.decoding import decode, handing
from fixtures.generation import generated
from fixtures.questions import Usage

DTYPES = pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
LENGTHS = {"shorter": (40, 12), "as-long": (30, 30), "longer": (12, 40)}
CORE = pytest.mark.applies(tier=("standard",))
AGAIN = [
    pytest.param(Usage(name, needs=frozenset({"exact", "reset"})), marks=[] if name == "shorter" else CORE)
    for name in LENGTHS
]
STEPS = 3


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("usage", AGAIN, ids=str)
@pytest.mark.applies(real=(False,))
def test_second_request_is_answered_as_the_first(case, kv_cache, dtype, usage, device, model, make_ids, truth, judge):
    """KV-10: a second request, on a cache that was reset or on a new one, MUST be answered as if it were the first."""
    first, second = LENGTHS[usage.name]
    room = max(LENGTHS[usage.name]) + STEPS
    ids, other = make_ids(batch=2, length=second + STEPS), make_ids(batch=2, length=first + STEPS)
    reused = kv_cache.make(model.config, 2, room)

    decode(model, reused, other, [first, *[1] * STEPS])
    fresh = decode(model, kv_cache.make(model.config, 2, room), ids, [second, *[1] * STEPS])
    found = {"a new cache,": fresh}
    for what in ("after reset,", "after another reset,"):
        reused.reset()
        found[what] = decode(model, reused, ids, [second, *[1] * STEPS])

    golden, reference = (truth(model, ids, d) for d in (torch.float64, dtype))
    for what, logits in found.items():
        judge(logits, reference, golden, what=what)


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("usage", [Usage("prefix", needs=frozenset({"exact", "copy"}))], ids=str)
@pytest.mark.applies(real=(False,))
def test_continuations_share_a_prefix(case, kv_cache, dtype, usage, device, model, make_ids, truth, judge):
    """KV-11: texts that share a cached prefix, and turns of one chat, MUST be answered as if each stood alone."""
    prompt, widths = 31, [4, 1, 1, 1]
    more = sum(widths)
    prefix, cache = make_ids(batch=2, length=prompt), kv_cache.make(model.config, 2, prompt + more)
    rests = [make_ids(batch=2, length=more) for _ in range(3)]

    decode(model, cache, prefix, [prompt])
    caches = [copy.deepcopy(cache), copy.deepcopy(cache), cache]
    found, done = [[] for _ in rests], 0
    for width in widths:  # they take turns, as requests do that are served together
        for logits, each, rest in zip(found, caches, rests, strict=True):
            logits.append(decode(model, each, rest[:, done:], [width], start=prompt + done))
        done += width

    for index, (logits, rest) in enumerate(zip(found, rests, strict=True)):
        golden, reference = (truth(model, torch.cat([prefix, rest], 1), d)[:, -more:] for d in (torch.float64, dtype))
        judge(torch.cat(logits, 1), reference, golden, what=f"continuation {index},")


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("turns", [Usage("turns", (9, 1, 1, 14, 1, 1, 1, 5, 1, 30, 1, 1))], ids=str)
@pytest.mark.applies(real=(False,))
def test_turns_of_a_chat_go_on(case, kv_cache, dtype, turns, device, model, make_ids, truth, judge):
    """KV-11: texts that share a cached prefix, and turns of one chat, MUST be answered as if each stood alone."""
    ids = make_ids(batch=2, length=turns.length)
    cache = kv_cache.make(model.config, 2, turns.length)

    logits = decode(model, cache, ids, turns.widths)

    judge(logits, truth(model, ids, dtype), truth(model, ids, torch.float64))


@torch.no_grad()
@DTYPES
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_generate_goes_on_with_a_chat(case, kv_cache, dtype, device, model, make_ids, truth, judge):
    """KV-11: texts that share a cached prefix, and turns of one chat, MUST be answered as if each stood alone."""
    rows, count, asked = 3, 8, (14, 9, 3)
    cache = handing(model, kv_cache.make(model.config, rows, sum(asked) + len(asked) * count))

    texts, ends = make_ids(batch=rows, length=0), []
    for turn in asked:
        texts = torch.cat([texts, make_ids(batch=rows, length=turn)], 1)
        texts = torch.cat([texts, generated(model, texts, count, **cache)], 1)
        ends.append(texts.shape[1])

    golden, reference = (truth(model, texts, d) for d in (torch.float64, dtype))
    for turn, end in enumerate(ends):
        for row, text in enumerate(texts):
            before = slice(end - count - 1, end - 1)
            answer = text[end - count : end].tolist()
            judge.ranked_first(answer, reference[row, before], golden[row, before], what=f"turn {turn} of text {row}")
