"""Agreement does not fade with the position."""

import pytest
import torch

from fixtures.agreement import expected
from fixtures.stretches import STRETCHES

# The architectures of tier full are tried under attention so far.
pytestmark = [pytest.mark.applies(tier=("standard",)), pytest.mark.applies(real=(True,)), pytest.mark.takes_minutes]

# Tokens of a document where the whole context is not filled.
LENGTH = 64


@torch.no_grad()
@pytest.mark.parametrize("stretch", STRETCHES, ids=str)
def test_agreement_holds_at_every_position(case, quantizer, stretch, device, bench, tokenized, judge):
    """QUANT-10: a quantized model MUST keep to its scheme's limits in every stretch of positions of its context."""
    limits = expected(quantizer.scheme, bench.shelf.model(case, torch.float32, device).num_parameters())
    ask = bench.shelf.long_agreement if stretch.long else bench.shelf.agreement

    found = ask(case, quantizer, device, tokenized(None if stretch.long else LENGTH))
    here = found.at(stretch.of(found.positions, int(found.positions.max()) + 1))
    intervals = here.intervals()

    judge.evidence |= {"tokens": len(here.kl), "limits": limits["source"]}
    judge.evidence["agreement"] = {name: [i.estimate, i.low, i.high] for name, i in intervals.items()}
    judge.exactly("KL divergence is zero", str(intervals["mean KL divergence"].estimate == 0), "False")
    judge.within("KL here ÷ KL of all positions", float(here.kl.mean() / found.kl.mean()))
    judge.interval("mean KL divergence", intervals["mean KL divergence"], ideal=0, high=limits["kl"])
