"""What is claimed of a quantizer's agreement with the released model is what is measured on the frozen text."""

import pytest
import torch

from fixtures import text
from fixtures.engagement import intended, quantized_names


@torch.no_grad()
@pytest.mark.capability("agreement")
@pytest.mark.applies(real=(True,))
def test_quantizer_agrees_as_is_claimed(claim, case, device, bench, tokenized, judge):
    """CLAIM-4: a quantized model MUST agree with the released one as closely as a claim says."""
    quantizer = bench.audit.quantizer(case, claim.this.quantizer, device)

    full, candidate = (bench.shelf.model(case, torch.float32, device), bench.shelf.quantized(case, quantizer, device))
    judge.exactly("quantized layers", quantized_names(candidate, quantizer), intended(full, quantizer))
    found = bench.shelf.agreement(case, quantizer, device, tokenized(claim.this.context))

    judge.evidence |= {"text": text.checksum(), "tokens": len(found.kl)}
    judge.claim(claim, found.intervals()[claim.measure])
