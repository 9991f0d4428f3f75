"""A backend computes attention as accurately as attention can be computed in its dtype."""

import pytest
import torch

from fixtures.meters import kernels
from fixtures.questions import Problem
from fixtures.yardstick import yardstick

PROBLEMS = [
    Problem("one-token", 4, 4, 1),
    Problem("mha-33", 4, 4, 33),
    Problem("mha-33-full", 4, 4, 33, causal=False),
    # more query heads to a key head, more heads, and more sequences than fit the smallest launch
    Problem("groups-of-7-33", 14, 2, 33),
    Problem("heads-40-rows-9", 40, 8, 17, batch=9),
    Problem("gqa-100", 6, 2, 100, batch=2, compiled=True),
    Problem("gqa-100-full", 6, 2, 100, batch=2, causal=False),
    Problem("exact-128", 4, 2, 128),  # tiles that are full, and nothing beyond them
    Problem("mha-129", 4, 4, 129, head_dim=128),
    Problem("mha-129-full", 4, 4, 129, head_dim=128, causal=False),
    Problem("mqa-257", 4, 1, 257, head_dim=128),
    Problem("mqa-257-full", 4, 1, 257, head_dim=128, causal=False),
    Problem("d32-257", 4, 2, 257, head_dim=32),
    Problem("d72-33", 4, 2, 33, head_dim=72),  # a multiple of 8, and of no more
    Problem("d80-129", 4, 2, 129, head_dim=80),
    Problem("d96-100", 4, 4, 100, head_dim=96),
    Problem("d256-129", 2, 1, 129, head_dim=256),
    Problem("gqa-1000", 4, 2, 1000),
    Problem("gqa-1000-full", 4, 2, 1000, causal=False),
    Problem("mha-2048", 2, 2, 2048, tier="full"),
    Problem("gqa-2048-full", 2, 1, 2048, head_dim=128, causal=False, tier="full"),
    # a prompt that continues a cache: the last query sees the last key
    Problem("decode-257", 4, 2, 257, queries=1, batch=2),
    # A step has kernels of its own: with as many heads, groups, features and sequences as a large model's, with a scale
    # and with a soft-cap that are not the default, and with so many keys that they are split
    Problem("decode-heads-85-rows-17", 85, 17, 10, head_dim=128, queries=1, batch=17),
    Problem("decode-scale-1000", 4, 2, 1000, queries=1, scale=0.3),
    Problem("decode-8200", 4, 2, 8200, queries=1),  # more than a fixed number of parts may hold
    Problem("decode-softcap-129", 4, 2, 129, queries=1, softcap=5.0, spread=4.0),
    Problem("chunk-4-of-400", 4, 2, 400, queries=4),  # a few drafted tokens: kernels may split the keys, as for one
    Problem("chunk-33-of-100", 4, 2, 100, queries=33, compiled=True),
    Problem("chunk-64-of-1000", 4, 1, 1000, queries=64, head_dim=128),
    Problem("scale-100", 6, 2, 100, scale=0.3),
    Problem("scale-257", 4, 4, 257, head_dim=128, scale=1 / 128),
    Problem("softcap-129", 4, 2, 129, softcap=5.0, spread=4.0),
    Problem("window-100", 4, 2, 100, window=24, batch=2),
    Problem("window-257", 4, 4, 257, window=128, head_dim=128),
    Problem("window-33-of-257", 4, 1, 257, queries=33, window=48),
    Problem("window-softcap-129", 4, 2, 129, window=24, softcap=5.0, spread=4.0, compiled=True),
    Problem("gqa-4096", 4, 2, 4096, devices=frozenset({"cuda"})),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_output_is_as_accurate_as_eager(attention, dtype, problem, device, own_kernels, make_qkv, judge):
    """ATTN-1: a backend's output MUST be as close to float64 attention as eager attention is in the same dtype."""
    qkv = make_qkv(problem)
    asked = problem.options()

    golden, reference = yardstick(*qkv, **asked)
    with kernels(device, own_kernels) as ran:
        candidate = attention(*qkv, **asked)

    judge.ran("kernels", own_kernels, ran)
    judge(candidate, reference, golden)


BIASED = [
    Problem("bias-100", 6, 2, 100, batch=2, takes=frozenset({"bias"}), compiled=True),
    Problem("bias-129-full", 4, 4, 129, head_dim=128, batch=2, causal=False, takes=frozenset({"bias"})),
    Problem("bias-decode-257", 4, 2, 257, queries=1, batch=2, takes=frozenset({"bias"})),
]


@pytest.mark.parametrize("problem", BIASED, ids=str)
def test_output_under_a_bias_is_as_accurate_as_eager(attention, dtype, problem, device, make_qkv, draw, judge):
    """ATTN-1: a backend's output MUST be as close to float64 attention as eager attention is in the same dtype."""
    qkv = make_qkv(problem)
    pairs = problem.batch, problem.heads, problem.rows, problem.length
    bias = (2 * torch.randn(pairs, generator=draw)).to(device=device, dtype=dtype)
    asked = problem.options()

    golden, reference = yardstick(*qkv, bias=bias, **asked)
    candidate = attention(*qkv, bias=bias, **asked)

    judge(candidate, reference, golden)
