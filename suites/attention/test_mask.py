"""Who sees whom: uniform attention over one-hot values reads the mask back, key by key."""

import pytest
import torch

from fixtures.meters import kernels
from fixtures.oracles.attention import visible
from fixtures.probes import first_difference, weights
from fixtures.questions import Problem
from fixtures.yardstick import yardstick

WINDOW = 24
FLAGS = [
    Problem("full", 4, 2, 49, causal=False),
    Problem("causal", 4, 2, 49, batch=2),
    Problem("causal-257", 2, 1, 257, head_dim=128),
    Problem("chunk-7-of-49", 4, 2, 49, queries=7),
    Problem("decode-49", 4, 4, 49, queries=1),
    *(Problem(f"window-{n}", 4, 2, n, window=WINDOW) for n in (WINDOW - 1, WINDOW, WINDOW + 1)),
    Problem(f"window-{2 * WINDOW + 1}", 4, 2, 2 * WINDOW + 1, window=WINDOW, compiled=True),
    Problem("window-decode-49", 4, 2, 49, queries=1, window=WINDOW),
    Problem("window-chunk-7-of-257", 2, 2, 257, queries=7, window=WINDOW, head_dim=128),
]


@pytest.mark.parametrize("problem", FLAGS, ids=str)
def test_flags_show_exactly_these_keys(attention, dtype, problem, device, own_kernels, judge):
    """ATTN-3: under causality, a window or a chunk, a query MUST see the keys that they show, all and no other."""
    asked = problem.options()
    shown = visible(problem.rows, problem.length, causal=problem.causal, window=problem.window, device=device)

    with kernels(device, own_kernels) as ran:
        found = weights(lambda q, k, v: attention(q, k, v, **asked), problem, dtype, device)

    judge.ran("kernels", own_kernels, ran)
    _sees(judge, found, shown)


def left_padding(p, query, key):
    """Row b of the batch begins with 11 b padding tokens, which see themselves only."""
    return (key >= 11 * torch.arange(p.batch)[:, None, None, None]) & (key <= query) | (key == query)


def right_padding(p, query, key):
    """Row b of the batch ends with 11 b padding tokens."""
    return (key < p.length - 11 * torch.arange(p.batch)[:, None, None, None]) & (key <= query)


def packed(p, query, key):
    """Documents of 17 tokens, each for itself."""
    return (key <= query) & (key // 17 == query // 17)


def prefix(p, query, key):
    """A prefix of 13 tokens that sees itself in both directions."""
    return (key <= query) | ((key < 13) & (query >= 0))


def scattered(p, query, key):
    """No pattern: about half of the keys, and always the first."""
    return ((key * 7919 + query * 104729) % 31 < 15) | (key == 0)


def by_head(p, query, key):
    """Each head has a window of its own."""
    return (key <= query) & (key > query - 5 * (1 + torch.arange(p.heads)[None, :, None, None]))


def late(p, query, key):
    """The first 600 keys are hidden from everyone: more than any tile."""
    return (key >= 600) & (query >= 0)


MASKS = [
    (Problem("left-padding", 4, 2, 49, batch=3, takes=frozenset({"mask"}), compiled=True), left_padding),
    (Problem("left-padding-decode", 4, 2, 49, batch=3, queries=1, takes=frozenset({"mask"})), left_padding),
    # more queries, and more keys of a step, than a tile of a mask has
    (Problem("left-padding-530", 1, 1, 530, head_dim=128, batch=2, takes=frozenset({"mask"})), left_padding),
    (Problem("left-padding-decode-530", 4, 2, 530, batch=3, queries=1, takes=frozenset({"mask"})), left_padding),
    (Problem("right-padding", 4, 4, 49, batch=3, takes=frozenset({"mask"})), right_padding),
    (Problem("packed", 4, 2, 49, takes=frozenset({"mask"})), packed),
    (Problem("prefix-lm", 4, 4, 49, takes=frozenset({"mask"})), prefix),
    (Problem("scattered", 4, 1, 257, head_dim=128, takes=frozenset({"mask"})), scattered),
    (Problem("by-head", 4, 2, 49, batch=2, takes=frozenset({"mask"})), by_head),
    (Problem("late", 2, 2, 700, queries=8, head_dim=128, takes=frozenset({"mask"})), late),
]


@pytest.mark.parametrize("given", ["bool", "minus-inf", "lowest"])
@pytest.mark.parametrize(("problem", "pattern"), MASKS, ids=[p.name for p, _ in MASKS])
def test_mask_shows_exactly_these_keys(attention, dtype, problem, pattern, given, device, own_kernels, judge):
    """ATTN-4: a mask, boolean or added, MUST show a query the keys that it names, all and no other."""
    query = torch.arange(problem.rows)[:, None] + problem.length - problem.rows
    pairs = pattern(problem, query, torch.arange(problem.length)).to(device)
    shown = torch.broadcast_to(pairs, (problem.batch, problem.heads if pattern is by_head else 1, *pairs.shape[-2:]))
    asked = {"mask": shown} if given == "bool" else {"bias": _added(shown, given, dtype)}

    with kernels(device, own_kernels) as ran:
        found = weights(lambda q, k, v: attention(q, k, v, causal=False, **asked), problem, dtype, device)

    judge.ran("kernels", own_kernels, ran)
    _sees(judge, found, shown)


def _added(shown, given, dtype):
    hidden = -torch.inf if given == "minus-inf" else torch.finfo(dtype).min
    return torch.zeros(shown.shape, dtype=dtype, device=shown.device).masked_fill(~shown, hidden)


def _sees(judge, found, shown):
    """A hidden key weighs exactly nothing, and a visible one does not."""
    wrong, where = first_difference(found != 0, shown.expand_as(found))
    judge.exactly("pairs of query and key that are seen wrongly", wrong, 0, place=where)


BLIND = [
    Problem("first-rows", 6, 2, 100, batch=2, takes=frozenset({"mask"}), compiled=True),
    Problem("first-rows-257", 2, 1, 257, head_dim=128, takes=frozenset({"mask"})),
]


@pytest.mark.parametrize("problem", BLIND, ids=str)
def test_rows_that_see_nothing_disturb_nobody(attention, dtype, problem, device, make_qkv, judge):
    """ATTN-5: a query that may see nothing MUST come out finite, and MUST NOT change any other."""
    blind = 11
    qkv = make_qkv(problem)
    shown = visible(problem.rows, problem.length, causal=True, device=device)[None, None]
    shown = shown & (torch.arange(problem.length, device=device) >= blind)

    golden, reference = yardstick(*qkv, mask=shown)
    candidate = attention(*qkv, causal=False, mask=shown)

    judge.exactly("values that are not finite", int((~candidate.isfinite()).sum()), 0)
    judge(candidate[..., blind:, :], reference[..., blind:, :], golden[..., blind:, :])


POISON = [
    Problem("padding-100", 6, 2, 100, batch=2, takes=frozenset({"mask"}), compiled=True),
    Problem("padding-decode-257", 4, 2, 257, queries=1, batch=2, takes=frozenset({"mask"})),
]


@pytest.mark.parametrize("problem", POISON, ids=str)
def test_hidden_slots_change_nothing(attention, dtype, problem, device, make_qkv, judge):
    """ATTN-6: what stands in a hidden slot, however large, MUST NOT change the output by a bit."""
    _poisoned(attention, problem, device, make_qkv, judge, key=30.0, value=1e4)


@pytest.mark.capability("hidden-nan")
@pytest.mark.parametrize("problem", POISON, ids=str)
def test_nan_in_hidden_slots_changes_nothing(attention, dtype, problem, device, make_qkv, judge):
    """ATTN-7: where it is claimed, NaN in a hidden slot MUST NOT change the output by a bit."""
    _poisoned(attention, problem, device, make_qkv, judge, key=torch.nan, value=torch.nan)


def _poisoned(attention, problem, device, make_qkv, judge, *, key, value):
    """The call with and without poison in the first 31 slots, which are hidden as padding is."""
    q, k, v = make_qkv(problem)
    hidden = (torch.arange(problem.length, device=device) < 31)[None, None, None]

    clean = attention(q, k, v, causal=False, mask=~hidden)
    candidate = attention(q, k.masked_fill(hidden.mT, key), v.masked_fill(hidden.mT, value), causal=False, mask=~hidden)

    wrong, where = first_difference(candidate, clean)
    judge.exactly("values that differ", wrong, 0, place=where)
