"""An answer does not depend on what was asked before."""

from functools import cache, partial

import pytest
import torch

from fixtures import inputs
from fixtures.configs import LLAMA_LIKE, VOCABULARY
from fixtures.decoding import decode, one_by_one
from fixtures.models import configured, seeded_model
from fixtures.probes import first_difference
from fixtures.questions import Usage

TRAINED = 32
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.0, 3.5]}
LONGROPE |= {"long_factor": [1.0, 2.0, 4.0, 8.0, 9.0, 10.0, 11.0, 12.0]}
MODELS = {
    "dynamic-ntk": (
        "llama",
        {**LLAMA_LIKE, "max_position_embeddings": TRAINED, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    ),
    "longrope": (
        "phi3",
        {
            **LLAMA_LIKE,
            "max_position_embeddings": 4 * TRAINED,
            "original_max_position_embeddings": TRAINED,
            "rope_scaling": LONGROPE,
        },
    ),
}
SHORT, LONG = one_by_one(20, 24), one_by_one(40, 44)
USAGES = [Usage(name, config=cache(partial(configured, *MODELS[name]))) for name in MODELS]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("usage", USAGES, ids=str)
def test_short_text_after_a_long_one(kv_cache, dtype, usage, device, bench, draw, judge):
    """KV-20: where positions are scaled by length, a short text after a long one MUST be answered as before it."""
    model = seeded_model(*MODELS[usage.name], bench.seed).to(device)
    short, long = (inputs.tokens(1, sum(widths), VOCABULARY, draw).to(device) for widths in (SHORT, LONG))

    def ask(ids, widths):
        return decode(model, kv_cache.make(model.config, 1, sum(widths)), ids, widths)

    first, between, third = ask(short, SHORT), ask(long, LONG), ask(short, SHORT)

    wrong, where = first_difference(third, first)
    judge.exactly("logits that differ from the first time", wrong, 0, place=where)
    scaled = first_difference(ask(long[:, :24], SHORT), between[:, :24])[0]
    judge.exactly("the long text was scaled", scaled > 0, True)
