"""Scores far from zero: softmax subtracts their maximum, whatever it is, and scale and soft-cap act once."""

import pytest

from fixtures.probes import first_difference, saturated
from fixtures.questions import Problem
from fixtures.yardstick import yardstick

SATURATED = [
    Problem("gqa-129", 4, 2, 129),
    Problem("mha-1000", 2, 2, 1000, head_dim=128),
    Problem("decode-257", 4, 2, 257, queries=1),
]


@pytest.mark.parametrize("level", [24000.0, -24000.0], ids=["high", "low"])
@pytest.mark.parametrize("problem", SATURATED, ids=str)
def test_softmax_finds_the_maximum_at_any_level(attention, dtype, problem, level, device, draw, judge):
    """ATTN-9: scores that are all very high, or all very low, MUST neither overflow nor lose their maximum."""
    qkv, expected = saturated(problem, dtype, device, draw, level)

    candidate = attention(*qkv, **problem.options())

    wrong, where = first_difference(candidate, expected)
    judge.exactly("values that are not the key's", wrong, 0, place=where)


LARGE = [
    Problem("large-scores-129", 4, 2, 129, spread=8.0),
    Problem("large-scale-100", 4, 4, 100, scale=2.0),
    Problem("small-scale-100", 4, 2, 100, head_dim=128, scale=1e-3),
    Problem("large-scores-softcap-129", 4, 2, 129, softcap=3.0, spread=30.0, compiled=True),
    Problem("softcap-scale-129", 4, 1, 129, softcap=20.0, scale=0.5, spread=3.0),
]


@pytest.mark.parametrize("problem", LARGE, ids=str)
def test_scale_and_softcap_act_once(attention, dtype, problem, device, make_qkv, judge):
    """ATTN-10: scale and soft-cap MUST be applied, once and in this order, however large the scores are."""
    qkv = make_qkv(problem)
    asked = problem.options()

    golden, reference = yardstick(*qkv, **asked)

    judge(attention(*qkv, **asked), reference, golden)
