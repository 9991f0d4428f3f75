"""What is under test is what ran: no silent fall-back passes for the kernel that was asked for."""

import pytest

from fixtures.attention import ANY_SDPA, kernel_names, sdpa, takers
from fixtures.meters import kernels
from fixtures.questions import Problem

NAMED = frozenset({"kernels"})  # what a backend's own kernels are called is known
PROBLEMS = [
    Problem("prefill-256", 4, 4, 256, batch=2, takes=NAMED),
    Problem("shared-heads-100", 6, 2, 100, batch=2, compiled=True, takes=NAMED),
    Problem("decode-257", 4, 4, 257, queries=1, takes=NAMED),
    Problem("chunk-64-of-256", 4, 4, 256, queries=64, takes=NAMED),
    Problem("window-100", 4, 4, 100, window=24, takes=NAMED),
    Problem("head-128", 4, 4, 129, head_dim=128, causal=False, takes=NAMED),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_kernel_is_the_one_that_was_asked_for(attention, dtype, problem, device, own_kernels, make_qkv, judge):
    """ATTN-17: a backend MUST run the kernel that it is named after, and no other in its place."""
    qkv = make_qkv(problem)
    attention(*qkv, **problem.options())  # what compiles on its first call does it here

    with kernels(device, own_kernels) as ran:
        attention(*qkv, **problem.options())

    judge.ran("kernels", own_kernels, ran)
    judge.did_not_run("kernels in its place", attention.instead, ran)


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.window is None], ids=str)
def test_own_choice_is_fused_where_a_fused_kernel_answers(dtype, problem, device, make_qkv, judge):
    """ATTN-19: torch's own choice of a kernel MUST NOT be MATH where a fused one takes the call."""
    qkv = make_qkv(problem)
    fused = [name for name in takers(*qkv, causal=problem.causal) if name != "sdpa-math"]

    with kernels(device, ANY_SDPA) as ran:
        sdpa(None)(*qkv, causal=problem.causal)

    judge.ran("chosen kernel", kernel_names(*fused or ["sdpa-math"]), ran)
    judge.did_not_run("MATH beside it", kernel_names("sdpa-math") if fused else (), ran)
