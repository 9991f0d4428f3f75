"""A backend computes attention as accurately as attention can be computed in its dtype."""

import pytest
import torch

from fixtures.meters import operators
from fixtures.oracles.attention import attention as plain
from fixtures.subjects import Shape

SHAPES = [
    Shape("mha-33", heads=4, kv_heads=4, length=33, head_dim=64),
    Shape("mha-129", heads=4, kv_heads=4, length=129, head_dim=128),
    Shape("gqa-100", heads=6, kv_heads=2, length=100, head_dim=64, batch=2),
    Shape("gqa-1000", heads=4, kv_heads=2, length=1000, head_dim=64),
    Shape("mqa-257", heads=4, kv_heads=1, length=257, head_dim=128),
]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_is_as_accurate_as_eager(attention, dtype, shape, causal, device, make_qkv, judge):
    """ATTN-1: a backend's output MUST be as close to float64 attention as eager attention is in the same dtype."""
    qkv = make_qkv(shape)

    golden = plain(*qkv.to(torch.float64), causal=causal)
    reference = plain(*qkv, causal=causal)
    with operators() as ran:
        candidate = attention.call(*qkv, causal=causal, scale=None)

    judge.ran("operators", attention.operators.get(device.type, ()), ran)
    judge(candidate, reference, golden)
