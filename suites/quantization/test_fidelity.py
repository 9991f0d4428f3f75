"""A quantized model is as far from full precision as textbook rounding puts it: not further, and not nearer."""

from dataclasses import replace

import pytest
import torch

from fixtures.agreement import kl_divergence
from fixtures.engagement import intended, quantized_names

# The architectures of tier full are tried under attention so far.
pytestmark = pytest.mark.applies(tier=("standard",))


@torch.no_grad()
def test_quantization_costs_what_textbook_rounding_costs(case, quantizer, device, bench, make_ids, judge):
    """QUANT-1: exactly the intended layers MUST be quantized, and cost the KL divergence of textbook rounding."""
    full = bench.shelf.model(case, torch.float32, device)
    candidate = bench.shelf.quantized(case, quantizer, device)
    ids = make_ids(batch=8, length=64)

    golden, textbook = bench.shelf.textbook(quantizer, full, ids)
    measured = kl_divergence(golden, candidate(ids, use_cache=False).logits).mean()

    judge.exactly("quantized layers", quantized_names(candidate, quantizer), intended(full, quantizer))
    judge.within(f"KL ÷ textbook {quantizer.scheme}", float(measured / kl_divergence(golden, textbook).mean()))


KEPT = ("down_proj", "lm_head")


@torch.no_grad()
@pytest.mark.applies(name=("bnb-int8", "bnb-nf4", "llama-gqa"))
def test_layers_that_are_to_be_kept_are_kept(case, quantizer, device, bench, judge):
    """QUANT-1: exactly the intended layers MUST be quantized, and cost the KL divergence of textbook rounding."""
    full, asked = bench.shelf.model(case, torch.float32, device), replace(quantizer, keeps=frozenset(KEPT))

    candidate = quantizer.load(case.checkpoint(), device, llm_int8_skip_modules=list(KEPT))

    judge.exactly("quantized layers", quantized_names(candidate, asked), intended(full, asked))
