"""Decoding with a cache computes what one prefill of the whole sequence computes."""

import pytest
import torch

from fixtures.decoding import decode, one_by_one
from fixtures.questions import Usage
from fixtures.tokens import said

LOGIC, HALVES = frozenset({torch.float32}), frozenset({torch.float32, torch.bfloat16})
CORE = pytest.mark.applies(tier=("standard",), real=(False,))
PROMPTS = [
    pytest.param(Usage("prompt-1", one_by_one(1, 64)), marks=CORE),
    pytest.param(Usage("prompt-33", one_by_one(33, 64)), marks=CORE),
    *[pytest.param(Usage(f"prompt-{n}", one_by_one(n, 42), dtypes=LOGIC), marks=CORE) for n in (31, 32)],
    # A power of two that buffers and tiles are cut by is crossed while decoding; every window is far behind. It is also
    # the largest up to which bfloat16 counts.
    pytest.param(Usage("prompt-250", one_by_one(250, 262), dtypes=HALVES), marks=CORE),
    pytest.param(
        Usage("prompt-1020", one_by_one(1020, 1030), dtypes=LOGIC, tier="full"),
        marks=pytest.mark.applies(tier=("standard",), real=(False,), positions=("rope", "alibi")),
    ),
    # Longer than the windows of those models, which is 7; and a trained model, whose every step is slow.
    pytest.param(Usage("prompt-9", one_by_one(9, 30)), marks=pytest.mark.applies(tier=("full",))),
    pytest.param(Usage("prompt-24", one_by_one(24, 30)), marks=pytest.mark.applies(real=(True,))),
]


# Beside a prompt so many times as long, what all steps are off by is little: they are judged by themselves too.
MANY = 20


@torch.no_grad()
@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_decode_is_as_accurate_as_prefill(case, kv_cache, dtype, prompt, device, model, make_ids, truth, judge):
    """KV-1: logits decoded token by token with a cache MUST be as close to float64 as those of one plain prefill."""
    ids = make_ids(batch=2, length=prompt.length)
    cache = kv_cache.make(model.config, 2, prompt.length)

    decoded = decode(model, cache, ids, prompt.widths)

    judge.exactly("tokens in the cache", int(cache.get_seq_length()), prompt.length)
    golden, reference = (truth(model, ids, d) for d in (torch.float64, dtype))
    judge(decoded, reference, golden)
    few = prompt.length - prompt.widths[0]
    if few * MANY <= prompt.length and case.positions != "alibi":  # of which BLOOM's in bfloat16 is POS-7's to judge
        judge(*(logits[:, -few:] for logits in (decoded, reference, golden)), what="steps,")
    judge.evidence |= said(case, decoded, ids)
