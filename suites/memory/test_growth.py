"""How what attention needs grows with the length."""

import pytest
import torch

from fixtures.allocations import EXPONENT, exponent, measured
from fixtures.questions import Problem

# On a GPU long, so that a kernel's workspace is small beside it, and with heads enough that FLASH does not split a
# short length's keys among idle multiprocessors: it does below 0.8 of them in blocks of 128 queries; 192 are asked.
# https://github.com/pytorch/pytorch/blob/v2.11.0/aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp
PROBLEMS = [
    Problem("growth", heads=2, kv_heads=2, length=2048, devices=frozenset({"cpu"})),
    Problem("growth-cuda", heads=24, kv_heads=24, length=4096, devices=frozenset({"cuda"})),
]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_memory_grows_with_the_power_that_is_claimed(attention, problem, dtype, device, make_qkv, judge):
    """MEM-8: what attention needs MUST grow with the square of the length where it tables scores, else linearly."""
    q, k, v = make_qkv(problem)
    lengths = [problem.length // 4, problem.length // 2, problem.length]

    def above(length):
        call = [x[..., :length, :].contiguous() for x in (q, k, v)]
        return measured(lambda: attention(*call, causal=True), device).peak - attention.tables * call[0].nbytes

    needed, claimed = [above(length) for length in lengths], 2 if attention.tables else 1

    judge.evidence["bytes by length"] = dict(zip(map(str, lengths), needed, strict=True))
    judge.between("exponent of the length", exponent(lengths, needed), claimed - EXPONENT, claimed + EXPONENT)
