"""A whole model on a backend computes the logits that its weights and its paper say."""

import torch

from fixtures.meters import operators


@torch.no_grad()
def test_logits_are_as_accurate_as_eager(case, attention, dtype, device, model, make_ids, truth, judge):
    """ATTN-2: a model's logits under a backend MUST be as close to float64 as plain eager attention's in that dtype."""
    ids = make_ids(batch=2, length=100)
    golden = truth(model, ids, torch.float64)
    reference = truth(model, ids, dtype)
    with attention.in_model(model) as called, operators() as ran:
        candidate = model(ids, use_cache=False).logits

    judge.ran("operators", attention.operators.get(device.type, ()), ran)
    judge.ran("calls", () if called is None else [attention.name], called or ())
    judge(candidate, reference, golden)
