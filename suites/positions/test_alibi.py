"""ALiBi inside models: the same bias in a prompt, in a cached step and behind padding."""

import pytest
import torch

from fixtures.decoding import after_padding
from fixtures.questions import Padding

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Beyond 256, where bfloat16 has no whole numbers of its own any more.
LENGTHS = (300, 263)
WAYS = (Padding("none", step=False), Padding("left", step=False), Padding("left"))


@torch.no_grad()
@pytest.mark.parametrize("padding", WAYS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.applies(positions=("alibi",))
def test_bias_is_the_same_in_every_way_of_asking(case, dtype, padding, device, model, make_ids, truth, judge):
    """POS-7: ALiBi MUST be slope times distance in a prompt, in a cached step and behind padding, however far."""
    rows = [make_ids(1, length)[0] for length in LENGTHS]

    found = after_padding(model, rows, padding)

    for row, candidate in zip(rows, found, strict=True):
        golden, reference = (truth(model, row[None], precision)[0] for precision in (torch.float64, dtype))
        judge(candidate, reference, golden, what=f"{len(row)} tokens")


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.applies(positions=("alibi",))
def test_bias_needs_no_mask(case, dtype, device, model, make_ids, truth, judge):
    """POS-7: ALiBi MUST be slope times distance in a prompt, in a cached step and behind padding, however far."""
    ids = make_ids(1, LENGTHS[0])

    candidate = model(ids, use_cache=False).logits

    judge(candidate, truth(model, ids, dtype), truth(model, ids, torch.float64))
