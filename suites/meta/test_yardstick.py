"""What attention is held against does not hang on the order in which one plain reference happened to sum."""

from types import SimpleNamespace

import pytest
import torch

from fixtures import distances
from fixtures.inputs import generator
from fixtures.judgement import Undecided
from fixtures.models import SMALL, seeded_model
from fixtures.oracles.attention import attention
from fixtures.shelf import Shelf
from fixtures.yardstick import yardstick

# Scores of standard deviation 16: softmax is nearly a choice.
SHARP = {"causal": True, "scale": 2.0}


def drawn(seed, dtype=torch.float32):
    draw = generator(seed, "sharp")
    return [torch.randn(1, 4, 100, 64, generator=draw).to(dtype) for _ in range(3)]


def worst(candidate, reference, golden):
    return distances.three(candidate, reference, golden)[0].measured


def test_a_kernel_that_sums_in_another_order_is_as_accurate():
    order = torch.randperm(64, generator=generator(0, "a kernel's own"))
    beside_one, beside_all = [], []
    for seed in range(40):
        q, k, v = drawn(seed)
        candidate = attention(q[..., order], k[..., order], v, **SHARP)
        golden, reference = yardstick(q, k, v, **SHARP)
        beside_one.append(worst(candidate, attention(q, k, v, **SHARP), golden))
        beside_all.append(worst(candidate, reference, golden))

    assert max(beside_one) > 40
    assert max(beside_all) < 10


def test_a_key_that_is_dropped_stands_out_where_softmax_is_nearly_a_choice():
    q, k, v = drawn(0)
    golden, reference = yardstick(q, k, v, **SHARP)
    seen = torch.arange(100) != 50

    assert worst(attention(q, k, v, mask=seen, **SHARP), reference, golden) > 1000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_held_against_one_plain_reference(dtype):
    q, k, v = drawn(0, dtype)
    bias = torch.randn(4, 100, 100, generator=generator(0, "bias")).to(dtype)

    golden, reference = yardstick(q, k, v, bias=bias, **SHARP)

    assert torch.equal(reference, attention(q, k, v, bias=bias, **SHARP))
    assert torch.equal(golden, attention(*(t.double() for t in (q, k, v)), bias=bias.double(), **SHARP))


def test_a_text_of_which_rounding_chooses_the_expert_is_undecided():
    architecture, config, _ = SMALL["mixtral-experts"]
    model = seeded_model(architecture, config, seed=0)
    case, ids = SimpleNamespace(name="mixtral-experts", real=False, config=None), torch.arange(20)[None]
    golden = Shelf().logits(case, model, ids, torch.float64)
    router = next(p for name, p in model.named_parameters() if name.endswith("gate.weight"))
    router.data[:] = router[0].clone()  # every expert has the same score

    assert golden.isfinite().all()
    with pytest.raises(Undecided):
        Shelf().logits(case, model, ids, torch.float64)
