"""A quantized model says the same, or something that its noise explains."""

import pytest
import torch

from fixtures.continuations import LONGER, SHORTER, partings

# The architectures of tier full are tried under attention so far.
pytestmark = [pytest.mark.applies(tier=("standard",)), pytest.mark.applies(real=(True,)), pytest.mark.takes_minutes]


@torch.no_grad()
def test_greedy_continuations_part_where_noise_explains_it(case, quantizer, device, bench, tokenizer, judge):
    """QUANT-11: greedy continuations MUST keep their tokens, length and end, unless noise explains where they part."""
    full = bench.shelf.model(case, torch.float32, device)
    candidate = bench.shelf.quantized(case, quantizer, device)

    asked, released, told = bench.shelf.continuations(case, quantizer, device, tokenizer)
    found = partings(full, candidate, asked, released, told)

    lengths = [sum(p.lengths[side] for p in found) for side in (0, 1)]
    judge.evidence |= {"prompts": len(found), "length ratio": lengths[1] / lengths[0]}
    judge.evidence["first divergent tokens"] = {p.prompt: p.after for p in found}
    judge.evidence["other lengths"] = {p.prompt: list(p.lengths) for p in found if not p.keeps_length}
    judge.evidence["parted at an end"] = [p.prompt for p in found if p.ends]
    judge.at_most("largest margin at a parting ÷ noise", max(p.surprise for p in found), quantizer.formed(device))
    same = [p for p in found if p.after is None and not p.keeps_length]
    judge.exactly(f"lengths outside {SHORTER} … {LONGER} that no parting explains", len(same), 0)
