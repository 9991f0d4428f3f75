"""The same question gets the same answer, whoever asks beside you."""

import pytest
import torch

from fixtures.probes import first_difference
from fixtures.questions import Problem
from fixtures.yardstick import yardstick

PROBLEMS = [
    Problem("gqa-100", 6, 2, 100, batch=2, compiled=True),
    Problem("mha-257", 4, 4, 257, head_dim=128, batch=3),
    Problem("decode-257", 4, 2, 257, queries=1, batch=3),
    Problem("gqa-4096", 8, 2, 4096, batch=3, devices=frozenset({"cuda"})),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_same_call_gives_the_same_bits(attention, dtype, problem, device, make_qkv, judge):
    """ATTN-13: the same call, three times over, MUST give the same output to the bit."""
    qkv = make_qkv(problem)

    first, *others = (attention(*qkv, **problem.options()).clone() for _ in range(3))

    for other in others:
        wrong, where = first_difference(other, first)
        judge.exactly("values that differ from the first call's", wrong, 0, place=where)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_row_does_not_depend_on_its_neighbours(attention, dtype, problem, device, make_qkv, judge):
    """ATTN-14: a row of a batch MUST be as accurate as alone, whatever stands in the other rows."""
    q, k, v = make_qkv(problem)
    loud = [torch.cat([t[:1], t[1:] * 100]) for t in (q, k, v)]
    alone = [t[:1].contiguous() for t in (q, k, v)]
    asked = problem.options()

    golden, reference = yardstick(*alone, **asked)

    judge(attention(*loud, **asked)[:1], reference, golden)


@pytest.mark.capability("batch-invariance")
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_row_is_the_same_in_any_batch(attention, dtype, problem, device, make_qkv, judge):
    """ATTN-15: where it is claimed, a row of a batch MUST be the same to the bit as the row alone."""
    qkv = make_qkv(problem)

    together = attention(*qkv, **problem.options())[:1]
    alone = attention(*(t[:1].contiguous() for t in qkv), **problem.options())

    wrong, where = first_difference(together, alone)
    judge.exactly("values that differ", wrong, 0, place=where)
