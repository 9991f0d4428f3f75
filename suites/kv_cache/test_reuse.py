"""A cache that was used before answers as a fresh one does."""

import copy

import pytest
import torch

from fixtures.caching import misplaced
from fixtures.decoding import decode, handing, padded_left
from fixtures.generation import generated
from fixtures.questions import Usage
from fixtures.requests import PROMPT, REQUESTS, other_threads, process_settings, random_numbers, settings
from fixtures.rounded_caches import handed, llama, outlier_inputs

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
@pytest.mark.parametrize("first", REQUESTS)
@pytest.mark.applies(real=(False,), tier=("standard",), saved=(True,), architecture=("llama",))
def test_a_request_leaves_all_as_it_was(case, dtype, first, device, make_ids, judge):
    """KV-10: a second request, on a cache that was reset or on a new one, MUST be answered as if it were the first."""
    ids = make_ids(2, PROMPT)
    case.checkpoint()  # is drawn where nobody has asked for it so far

    with other_threads():
        process, numbers = process_settings(), random_numbers()
        model = case.load(dtype, device)
        loaded, since = settings(model), random_numbers()
        REQUESTS[first](model, ids)
        then, later = settings(model), random_numbers()

    judge.exactly("what a load changed", _changed(process | numbers, loaded | since), "nothing")
    drawn = {"torch's numbers": since["torch's numbers"]} if first == "sampled" else {}
    judge.exactly("what a request changed", _changed(loaded | since, then | later | drawn), "nothing")


def _changed(before, after):
    return (
        "; ".join(f"{what}: {was} → {after[what]}" for what, was in before.items() if after[what] != was) or "nothing"
    )


ROUNDED = Usage("again", (40, *[1] * 40), frozenset({"rounds", "reset"}), config=llama)


@DTYPES
@pytest.mark.parametrize("usage", [ROUNDED], ids=str)
def test_second_request_is_rounded_as_the_first(kv_cache, dtype, usage, device, draw, judge):
    """KV-10: a second request, on a cache that was reset or on a new one, MUST be answered as if it were the first."""
    first, second = (outlier_inputs(draw, 2, 2, usage.length, 32, 20).to(device, dtype) for _ in range(2))
    reused, new = (kv_cache.make(usage.config(), 2, usage.length) for _ in range(2))

    handed(reused, first, usage.widths)
    reused.reset()

    (seen, _), (wanted, _) = (handed(cache, second, usage.widths) for cache in (reused, new))
    wrong, where = misplaced(seen, *wanted)
    judge.exactly("numbers that differ from a new cache's", wrong, 0, place=where)


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


# How many tokens each turn adds, one of them none, as where an answer that was cut is to go on, and how long the texts
# are that begin as one batch.
TURNS, FIRST, COUNT = (14, 9, 0, 3), (14, 6, 11), 8


@torch.no_grad()
@DTYPES
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_generate_goes_on_with_a_chat(case, kv_cache, dtype, device, model, make_ids, truth, judge):
    """KV-11: texts that share a cached prefix, and turns of one chat, MUST be answered as if each stood alone."""
    texts, ends = chat(model, kv_cache, make_ids, TURNS)

    judge_answers(judge, texts, ends, lambda text, d: truth(model, text, d)[0], dtype)


# A later turn that comes in chunks, the last of them smaller: where 4.57's BLOOM raises, and answers nothing.
@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("size", [4], ids=["chunks-4"])
@pytest.mark.applies(real=(False,), tier=("standard",), positions=("rope", "learned"))
def test_generate_goes_on_in_chunks(case, kv_cache, dtype, size, device, model, make_ids, truth, judge):
    """KV-11: texts that share a cached prefix, and turns of one chat, MUST be answered as if each stood alone."""
    texts, ends = chat(model, kv_cache, make_ids, (TURNS[0], 9), size)

    judge_answers(judge, texts, ends, lambda text, d: truth(model, text, d)[0], dtype)


def chat(model, kv_cache, make_ids, turns, size=None):
    """Texts with an answer after each turn, padded on the left, and where their answers end; later turns in chunks."""
    prompts = [row[:length] for row, length in zip(make_ids(len(FIRST), turns[0]), FIRST, strict=True)]
    # Room for twice the text: transformers before 5.23 feeds it again behind itself where a later turn comes in chunks,
    # and what overruns a static cache on a GPU takes the whole process with it.
    cache = handing(model, kv_cache.make(model.config, len(prompts), 2 * (sum(turns) + len(turns) * COUNT)))
    (texts, real), ends = padded_left(prompts), []
    for turn in turns:
        new = make_ids(len(prompts), turn if ends else 0)
        texts, real = torch.cat([texts, new], 1), torch.cat([real, torch.ones_like(new)], 1)
        how = {"prefill_chunk_size": size} if ends else {}
        answers = generated(model, texts, COUNT, real, **how, **cache)
        texts, real = torch.cat([texts, answers], 1), torch.cat([real, torch.ones_like(answers)], 1)
        ends.append(texts.shape[1])
    return texts, ends


def judge_answers(judge, texts, ends, alone, dtype):
    """Each answer of each text is what `alone` ranks first: `(text (1, n), dtype)` -> logits `(n, vocabulary)`."""
    for row, (text, length) in enumerate(zip(texts, FIRST, strict=True)):
        padding = max(FIRST) - length
        golden, reference = (alone(text[None, padding:], d) for d in (torch.float64, dtype))
        for turn, end in enumerate(ends):
            before = slice(end - padding - COUNT - 1, end - padding - 1)
            answer = text[end - COUNT : end].tolist()
            judge.ranked_first(answer, reference[before], golden[before], what=f"turn {turn} of text {row}")
