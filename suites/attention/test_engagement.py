"""What is under test is what ran: no silent fall-back passes for the kernel that was asked for."""

import pytest

from fixtures.meters import kernels
from fixtures.subjects import Problem

PROBLEMS = [
    Problem("prefill-256", 4, 4, 256, batch=2, compiled=True),
    Problem("shared-heads-100", 6, 2, 100),
    Problem("decode-257", 4, 4, 257, queries=1),
    Problem("chunk-64-of-256", 4, 4, 256, queries=64),
    Problem("window-100", 4, 4, 100, window=24),
    Problem("head-128", 4, 4, 129, head_dim=128, causal=False),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_kernel_is_the_one_that_was_asked_for(attention, dtype, problem, device, make_qkv, judge):
    """ATTN-17: a backend MUST run the kernel that it is named after, and no other in its place."""
    qkv = make_qkv(problem)
    attention(*qkv, **problem.options())  # what compiles on its first call does it here

    with kernels(device) as ran:
        attention(*qkv, **problem.options())

    judge.ran("kernels", attention.kernels.get(device.type) or ("*",), ran)
