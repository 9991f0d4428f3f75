"""Rows of a batch are answered as if each were alone, at every step, and while the batch changes."""

import pytest
import torch

from fixtures.caching import operate
from fixtures.decoding import decode, padded_left
from fixtures.generation import generated, using
from fixtures.questions import Usage

LENGTHS, STEPS = (33, 5, 20), 9
# An answer that outgrows a mask with room for 32 tokens. Where padding has no token of its own, it is one of the text.
COUNT, PAD = 36, 0
HALVES = frozenset({torch.float32, torch.bfloat16})
LOGIC = frozenset({torch.float32})
SMALL = pytest.mark.applies(real=(False,))


def _in_pieces(width: int) -> tuple[int, ...]:
    """The last of a prompt joins a cache that has its beginning, and so does a turn, before single steps."""
    return width - 4, 4, 3, *[1] * (STEPS - 3)


# How long the rows are as a prompt, and how the batch goes in: what is wider than its longest row is padded in all.
ROWS = {
    "left-padded": (LENGTHS, (max(LENGTHS), *[1] * STEPS)),
    "sorted": ((5, 20, 33), _in_pieces(33)),
    "lone": ((21,), _in_pieces(160)),  # by more slots than seven bits count
    "bucket": ((33, 20), _in_pieces(40)),
}
PADDED = [
    pytest.param(Usage(name, widths, dtypes=HALVES if name == "left-padded" else LOGIC), marks=SMALL)
    for name, (_, widths) in ROWS.items()
]


@torch.no_grad()
@pytest.mark.parametrize("usage", PADDED, ids=str)
def test_padded_row_equals_the_row_alone(case, kv_cache, dtype, usage, device, model, make_ids, truth, judge):
    """KV-4: a left-padded row MUST have the logits that it has alone, as a prompt and at every cached step."""
    lengths, _ = ROWS[usage.name]
    rows = [row[: n + STEPS] for row, n in zip(make_ids(len(lengths), usage.length), lengths, strict=True)]
    ids, real = padded_left(rows, usage.length)
    cache = kv_cache.make(model.config, len(rows), usage.length)

    logits = decode(model, cache, ids, usage.widths, real=real)

    for index, row in enumerate(rows):
        golden, reference = (truth(model, row[None], d)[0] for d in (torch.float64, dtype))
        judge(logits[index, -len(row) :], reference, golden, what=f"row of {len(row)}")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_padded_row_is_answered_as_alone(case, kv_cache, dtype, device, model, make_ids, truth, judge):
    """KV-4: a left-padded row MUST have the logits that it has alone, as a prompt and at every cached step."""
    rows = [row[:length] for row, length in zip(make_ids(len(LENGTHS), max(LENGTHS)), LENGTHS, strict=True)]
    for row in rows:
        row[1::3] = PAD
    ids, real = padded_left(rows)
    how = using(model, kv_cache, max(LENGTHS) + COUNT, rows=len(rows))

    answers = generated(model, ids, COUNT, real, **how)

    _judge_answers(judge, truth, model, rows, answers, dtype)


# What else than int64 says which tokens are real, and how long the answers are then.
KINDS, SOME = {"bools": torch.bool, "ints": torch.int32, "floats": torch.float32}, 6


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("mask", KINDS)
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_padding_is_told_in_any_dtype(case, mask, dtype, device, model, make_ids, truth, judge):
    """KV-4: a left-padded row MUST have the logits that it has alone, as a prompt and at every cached step."""
    rows = [row[:length] for row, length in zip(make_ids(len(LENGTHS), max(LENGTHS)), LENGTHS, strict=True)]
    ids, real = padded_left(rows)

    answers = generated(model, ids, SOME, real.to(KINDS[mask]))

    _judge_answers(judge, truth, model, rows, answers, dtype)


def _judge_answers(judge, truth, model, rows, answers, dtype):
    for row, answer in zip(rows, answers, strict=True):
        whole = torch.cat([row, answer])[None]
        golden, reference = (truth(model, whole, d)[0, len(row) - 1 : -1] for d in (torch.float64, dtype))
        judge.ranked_first(answer.tolist(), reference, golden, what=f"row of {len(row)}")


# What is done to the batch, and the rows that it then holds, one change after the other; the longest-lived goes first.
BATCHES = {
    "shrinks": ("select", [[1, 2], [1]]),
    "turns": ("select", [[2, 0, 1], [1, 0, 2]]),
    "grows": ("repeat", [[0, 0, 1, 1, 2, 2]]),
}
CHANGES = [Usage(name, needs=frozenset({"exact", word}), dtypes=LOGIC) for name, (word, _) in BATCHES.items()]


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.applies(real=(False,))
def test_row_stays_itself_when_the_batch_changes(case, kv_cache, dtype, change, device, model, make_ids, truth, judge):
    """KV-5: when rows of a cache are selected or repeated, each MUST go on as the row that it was, keys and values."""
    prompt, steps = 30, 4
    ids, cache = make_ids(batch=3, length=prompt), kv_cache.make(model.config, 3, prompt + 2 * steps)

    decode(model, cache, ids, [prompt - 2, 1, 1])
    operation, batches = BATCHES[change.name]
    for kept in batches:
        operate(cache, operation, rows=torch.tensor(kept, device=device))
        ids = torch.cat([ids[kept], make_ids(batch=len(kept), length=steps)], 1)
        logits = decode(model, cache, ids[:, -steps:], [1] * steps, start=ids.shape[1] - steps)

        golden, reference = (truth(model, ids, d)[:, -steps:] for d in (torch.float64, dtype))
        judge(logits, reference, golden, what=f"{len(kept)} rows")
