"""A model that is as large as those that are served, in one of its sizes at a time, computes what its paper says."""

import pytest
import torch

from fixtures import inputs
from fixtures.configs import SMALL
from fixtures.models import from_folder, seeded_model
from fixtures.oracles.decoder import logits

LENGTH = 17
# Beyond what 16 bits count, and what one block of a kernel takes.
BASE = {**SMALL["llama-gqa"][1], "hidden_size": 64, "head_dim": 32, "num_hidden_layers": 1}
SIZES = {
    "vocabulary-98304": {"vocab_size": 98_304},
    "hidden-2304": {"hidden_size": 2304},
    "intermediate-11008": {"intermediate_size": 11_008},
}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("size", SIZES)
def test_logits_of_a_large_model(size, dtype, device, bench, draw, decoded, judge):
    """ATTN-2: a model's logits under a backend MUST be as close to float64 as plain eager attention's in that dtype."""
    model = seeded_model("llama", BASE | SIZES[size], bench.seed).to(device)
    ids = inputs.tokens(2, LENGTH, model.config.vocab_size, draw).to(device)

    candidate = model(ids, use_cache=False).logits

    judge(candidate, *(decoded(model, ids, kind) for kind in (dtype, torch.float64)))


# Tokens enough that no expert's count of them is a whole number of tiles, and one layer, so that a token of which
# rounding decides the expert changes no other.
TOKENS = 125
EXPERTS = {**SMALL["mixtral-experts"][1], "num_hidden_layers": 1}
# By how much the last chosen expert's score must lead the next one's, as a share of itself: half is more than what
# bfloat16 makes of both. Another expert changes more of a token than float64 rounds, which rounds otherwise where an
# expert has other tokens beside it.
DOUBT, ROUNDING = 0.5, 1e-9


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=["bfloat16"])
@pytest.mark.parametrize("mixture", ["mixtral"])
def test_experts_in_half_precision_take_every_token(mixture, dtype, device, bench, draw, decoded, tmp_path, judge):
    """ATTN-2: a model's logits under a backend MUST be as close to float64 as plain eager attention's in that dtype."""
    seeded_model(mixture, EXPERTS, bench.seed).save_pretrained(tmp_path)
    model = from_folder(tmp_path, dtype, device)
    ids = inputs.tokens(1, TOKENS, model.config.vocab_size, draw).to(device)

    candidate = model(ids, use_cache=False).logits

    reference, golden = (decoded(model, ids, kind) for kind in (dtype, torch.float64))
    doubted = logits(model.config, model.state_dict(), ids, dtype=torch.float64, doubt=DOUBT)
    sure = (golden - doubted).norm(dim=-1) <= ROUNDING * golden.norm(dim=-1)
    judge.evidence["tokens"] = int(sure.sum())
    judge(*(found[sure][None] for found in (candidate, reference, golden)))
