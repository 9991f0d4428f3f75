"""A relative encoding does not know where a text stands."""

import pytest
import torch

from fixtures.subjects import SHIFTED


@torch.no_grad()
@pytest.mark.parametrize("shift", [1, 64, 4096, 100000])
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(positions=("rope", "rotary"))
def test_shifting_every_position_changes_nothing(case, dtype, shift, device, model, make_ids, truth, judge):
    """POS-3: shifting all positions by a constant MUST NOT change a logit beyond what plain float32 costs there."""
    ids = make_ids(batch=2, length=SHIFTED)
    positions = torch.arange(ids.shape[1], device=device).expand(ids.shape) + shift
    golden = truth(model, ids, torch.float64)
    reference = truth(model, ids, dtype, positions)

    candidate = model(ids, position_ids=positions.clone(), use_cache=False).logits

    judge(candidate, reference, golden)


@torch.no_grad()
@pytest.mark.parametrize("shift", [1, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(positions=("alibi",))
def test_padding_on_the_left_changes_nothing(case, dtype, shift, device, model, make_ids, truth, judge):
    """POS-3: shifting all positions by a constant MUST NOT change a logit beyond what plain float32 costs there."""
    ids = make_ids(batch=2, length=SHIFTED)
    padded = torch.cat([ids.new_zeros(len(ids), shift), ids], 1)
    mask = torch.cat([ids.new_zeros(len(ids), shift), torch.ones_like(ids)], 1)
    golden = truth(model, ids, torch.float64)
    reference = truth(model, ids, dtype)

    candidate = model(padded, attention_mask=mask, use_cache=False).logits[:, shift:]

    judge(candidate, reference, golden)
