"""Keys are turned by their position, in pairs as the architecture lays them out."""

import pytest
import torch

from fixtures.rotation import norms, places, scores, turned

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.applies(positions=("rope", "rotary"), latent=(False,))
def test_keys_are_turned_by_their_position(case, dtype, device, model, judge):
    """POS-4: rotation MUST turn an architecture's pairs by position times frequency, keep norms and know distances."""
    found = turned(model, places(case.longest, device))

    judge.evidence["pairs"] = found.layout
    judge(found.keys, found.reference, found.golden)
    for what in (norms, scores):
        judge(what(found.keys), what(found.reference), what(found.golden), what=what.__name__)
