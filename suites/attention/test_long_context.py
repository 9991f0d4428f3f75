"""Attention over as many tokens as a deployment serves, looked at in the rows where an index could wrap."""

import pytest
import torch

from fixtures.meters import kernels
from fixtures.questions import Problem
from fixtures.yardstick import yardstick

GPU = frozenset({"cuda"})

# In float32 nothing that torch has takes fewer key heads than query heads, and its own choice holds all scores at once.
HALF = frozenset({torch.float16, torch.bfloat16})
PROBLEMS = [
    Problem("gqa-4160", 4, 2, 4160, tier="full"),
    Problem("gqa-16384", 4, 2, 16384, head_dim=128, devices=GPU, compiled=True),
    Problem("mha-32768", 2, 2, 32768, devices=GPU),
    Problem("mha-65537", 2, 2, 65537, devices=GPU),
    Problem("gqa-65537", 4, 1, 65537, devices=GPU, dtypes=HALF),
    Problem("gqa-70001", 2, 1, 70001, devices=GPU, dtypes=HALF),
    Problem("mha-131072", 1, 1, 131072, head_dim=128, devices=GPU),
    Problem("gqa-131072", 2, 1, 131072, head_dim=128, devices=GPU, dtypes=HALF),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_rows_of_a_long_context_are_as_accurate_as_eager(
    attention, dtype, problem, device, own_kernels, make_qkv, judge
):
    """ATTN-1: a backend's output MUST be as close to float64 attention as eager attention is in the same dtype."""
    q, k, v = make_qkv(problem)
    rows = _rows(problem.length).to(device)
    seen = torch.arange(problem.length, device=device) <= rows[:, None]

    golden, reference = yardstick(q[:, :, rows], k, v, mask=seen)
    with kernels(device, own_kernels) as ran:
        candidate = attention(q, k, v, causal=True)

    judge.ran("kernels", own_kernels, ran)
    judge(candidate[:, :, rows], reference, golden)


def _rows(length):
    """Runs of 64 rows: the first, the last, the middle, and those around every power of two from 4096 on."""
    starts = [0, length // 2, length - 64, *(2**n - 32 for n in range(12, 18) if 2**n + 32 <= length)]
    return torch.cat([torch.arange(start, start + 64) for start in sorted(starts)])
