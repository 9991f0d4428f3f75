"""How much faster fused attention reads a long prompt than eager attention."""

import pytest
import torch

from fixtures.generation import generated
from fixtures.in_model import switched
from fixtures.inputs import tokens

# Tokens of the long prompt, and the dtype, by device.
LONG = {"cpu": (512, torch.float32), "cuda": (4096, torch.bfloat16)}
SHORT, COUNT = 64, 4


@torch.no_grad()
@pytest.mark.applies(real=(True,))
def test_fused_prefill_against_eager(case, device, bench, make_ids, draw, truth, right, compare):
    """TIME-1: two ways that are timed against each other MUST first both give what golden logits rank first."""
    length, dtype = LONG[device.type]
    model = bench.shelf.model(case, dtype, device)
    short, prompt = make_ids(batch=1, length=SHORT), tokens(1, length, model.config.vocab_size, draw).to(device)

    def way(attention, ids, count):
        with switched(model, attention):
            return generated(model, ids, count)

    for attention in ("sdpa", "eager"):
        right(attention, short, way(attention, short, COUNT), dtype, lambda ids, d: truth(model, ids, d))
    compare(
        f"eager ÷ sdpa, prefill of {length} tokens",
        lambda: way("sdpa", prompt, 1),
        lambda: way("eager", prompt, 1),
    )
