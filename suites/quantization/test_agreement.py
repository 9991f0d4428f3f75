"""A quantized deployment still says what the released model says."""

import pytest
import torch

from fixtures import text
from fixtures.agreement import compare, expected
from fixtures.engagement import intended, quantized_names

# The architectures of tier full are tried under attention so far.
pytestmark = pytest.mark.applies(tier=("standard",))

# Tokens of each of the 48 documents: 48 × 127 predictions.
LENGTH = 128


@torch.no_grad()
@pytest.mark.applies(real=(True,))
def test_quantized_model_agrees_with_the_released_one(case, quantizer, device, bench, tokenized, judge):
    """QUANT-2: a quantized model MUST keep the released one's next-token distribution within its scheme's limits."""
    full = bench.shelf.model(case, torch.float32, device)
    candidate = bench.shelf.quantized(case, quantizer, device)
    limits = expected(quantizer.scheme, full.num_parameters())

    judge.exactly("quantized layers", quantized_names(candidate, quantizer), intended(full, quantizer))
    kl, top1, perplexity = compare(
        lambda ids: full(ids, use_cache=False).logits,
        lambda ids: candidate(ids, use_cache=False).logits,
        [ids.to(device) for ids in tokenized(LENGTH)],
    ).intervals()

    judge.evidence |= {"text": text.checksum(), "limits": limits["source"]}
    judge.exactly("KL divergence is zero", str(kl.estimate == 0), "False")
    judge.interval("mean KL divergence", kl, ideal=0, high=limits["kl"])
    judge.interval("top-1 agreement", top1, ideal=1, low=limits["top1"])
    low, high = limits["perplexity"]
    judge.interval("perplexity ratio", perplexity, ideal=1, low=low, high=high)
