"""Offloading and `device_map="auto"` place exactly the bytes that they plan."""

import pytest
import torch
from transformers import DynamicCache

from fixtures.decoding import decode, one_by_one
from fixtures.placement import placed, planned, resident, room

STEPS = 2


@torch.no_grad()
@pytest.mark.parametrize("share", [0.6, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.applies(tier=("standard",), real=(False,))
def test_places_hold_what_is_planned_for_them(case, dtype, share, device, model, make_ids, tmp_path, judge):
    """MEM-11: with `device_map="auto"` a place MUST hold what is planned for it, and all answer as one place does."""
    allowed = room(case.checkpoint(), dtype, device, share)
    spread, ids = placed(case.checkpoint(), dtype, allowed, tmp_path), make_ids(2, 24)
    plan = planned(spread, dtype)

    at_first = resident(spread)
    widths = one_by_one(ids.shape[1] - STEPS, ids.shape[1])
    found, wanted = (decode(m, DynamicCache(config=m.config), ids, widths) for m in (spread, model))

    judge.exactly("bytes in each place", str(at_first), str(plan))
    judge.exactly("bytes in each place after a request", str(resident(spread)), str(plan))
    judge.exactly("logits that differ from one place's", int((found.to(device) != wanted).sum()), 0)
    learned = planned(spread, dtype, buffers=False)
    over = {where: size for where, size in learned.items() if size > allowed.get(_name(where), 0)}
    judge.exactly("places that hold more than they may", str(over), "{}")


def _name(where):
    """A device as `max_memory` names it."""
    return torch.device(where).index if where.startswith("cuda") else where
