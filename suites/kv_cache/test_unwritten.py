"""What stands in a slot that holds no token is nobody's business."""

import math

import pytest
import torch

from fixtures.caching import drop, fill, recording
from fixtures.decoding import decode
from fixtures.probes import first_difference
from fixtures.questions import Usage

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
LARGE = 1e4
SLOTS = {
    "spare": (5, 0),  # a prompt that no window is full of, and how many of its tokens are dropped
    "dropped": (20, 6),
}
UNDO = {"spare": lambda cache, dropped: None, "dropped": drop}
USAGES = [
    Usage("spare", needs=frozenset({"exact", "slots", "spare"})),
    Usage("dropped", needs=frozenset({"exact", "slots", "crop"})),
]


def answers(kv_cache, model, ids, slots, *values):
    """Logits of what follows a prompt, beside how many numbers were written into slots without a token."""
    prompt, dropped = SLOTS[slots]
    cache = recording(kv_cache.make(model.config, len(ids), ids.shape[1] + 2))
    decode(model, cache, ids, [prompt])
    UNDO[slots](cache, dropped)
    written = [fill(kv_cache.unwritten(cache), value) for value in values]
    logits, done = [], 0
    for width in (1, 2, 1):
        logits.append(decode(model, cache, ids[:, prompt + done :], [width], start=prompt - dropped + done))
        UNDO[slots](cache, 0)  # while it records, every call is followed by a drop
        done += width
    return torch.cat(logits, 1), sum(written)


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("usage", USAGES, ids=str)
@pytest.mark.applies(real=(False,))
def test_slots_without_a_token_are_not_read(case, kv_cache, dtype, usage, device, model, make_ids, judge):
    """KV-12: large numbers in slots that hold no token, or no longer, MUST NOT change a logit by a bit."""
    ids = make_ids(batch=2, length=SLOTS[usage.name][0] + 4)

    plain, _ = answers(kv_cache, model, ids, usage.name)
    poisoned, count = answers(kv_cache, model, ids, usage.name, LARGE)
    again, _ = answers(kv_cache, model, ids, usage.name)

    wrong, where = first_difference(poisoned, plain)
    judge.evidence["logits that differ without them"] = first_difference(again, plain)[0]
    judge.exactly("slots were filled", count > 0, True)
    judge.exactly("logits that differ", wrong, 0, place=where)


@torch.no_grad()
@DTYPES
@pytest.mark.capability("unwritten-nan")
@pytest.mark.parametrize("usage", USAGES, ids=str)
@pytest.mark.applies(real=(False,))
def test_nan_without_a_token_is_not_read(case, kv_cache, dtype, usage, device, model, make_ids, judge):
    """KV-13: where it is claimed, NaN in slots that hold no token MUST NOT change a logit by a bit."""
    ids = make_ids(batch=2, length=SLOTS[usage.name][0] + 4)

    plain, _ = answers(kv_cache, model, ids, usage.name)
    poisoned, count = answers(kv_cache, model, ids, usage.name, math.nan)

    wrong, where = first_difference(poisoned, plain)
    judge.exactly("slots were filled", count > 0, True)
    judge.exactly("logits that differ", wrong, 0, place=where)
