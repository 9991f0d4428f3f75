"""A saturated softmax returns exactly the value it points at: an index that wraps is an error of order one."""

import math

import pytest
import torch

from fixtures.meters import kernels
from fixtures.probes import first_difference, saturated
from fixtures.questions import Problem

GPU = frozenset({"cuda"})
HALF = frozenset({torch.float16, torch.bfloat16})  # in float32, torch's own choice would hold all scores at once
PROBLEMS = [
    Problem("mha-33", 4, 4, 33),
    Problem("gqa-129", 6, 2, 129, batch=2),
    Problem("mqa-1000", 4, 1, 1000, head_dim=128),
    Problem("full-257", 4, 2, 257, causal=False),
    Problem("decode-2049", 4, 2, 2049, queries=1, batch=2),
    Problem("chunk-100-of-300", 4, 2, 300, queries=100),
    Problem("window-257", 4, 2, 257, window=24),
    Problem("gqa-2048", 2, 1, 2048, tier="full"),
    Problem("gqa-2113", 2, 1, 2113),  # beyond 2,048 queries on a CPU too
    Problem("gqa-4097", 4, 2, 4097, devices=GPU),
    Problem("gqa-16384", 4, 2, 16384, head_dim=128, devices=GPU, compiled=True),
    Problem("mha-65537", 1, 1, 65537, devices=GPU),
    Problem("gqa-65537", 2, 1, 65537, devices=GPU, dtypes=HALF),
    Problem("mha-131072", 1, 1, 131072, head_dim=128, devices=GPU),
    Problem("gqa-131072", 2, 1, 131072, head_dim=128, devices=GPU, dtypes=HALF),
    Problem("decode-131072", 8, 2, 131072, queries=1, head_dim=128, devices=GPU),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_saturated_softmax_returns_the_value_it_points_at(attention, dtype, problem, device, own_kernels, draw, judge):
    """ATTN-8: where one key's score towers over all others, the output MUST be that key's value, exactly."""
    qkv, expected = saturated(problem, dtype, device, draw)

    with kernels(device, own_kernels) as ran:
        candidate = attention(*qkv, **problem.options())

    judge.ran("kernels", own_kernels, ran)
    wrong, where = first_difference(candidate, expected)
    judge.exactly("values that are not the key's", wrong, 0, place=where)


LARGE = [Problem("large-values-129", 4, 2, 129), Problem("large-values-1000", 2, 2, 1000, head_dim=128)]


@pytest.mark.parametrize("problem", LARGE, ids=str)
def test_value_may_be_as_large_as_its_dtype_allows(attention, dtype, problem, device, draw, judge):
    """ATTN-8: where one key's score towers over all others, the output MUST be that key's value, exactly."""
    qkv, expected = saturated(problem, dtype, device, draw)
    far = 2.0 ** (math.frexp(torch.finfo(dtype).max)[1] - 6)  # a power of two changes no digit

    candidate = attention(qkv.q, qkv.k, qkv.v * far, **problem.options())

    wrong, where = first_difference(candidate, expected * far)
    judge.exactly("values that are not the key's", wrong, 0, place=where)
