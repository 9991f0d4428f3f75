"""What is claimed of how a deployment runs is what is seen: the same bits again, the attention that was asked for."""

import pytest
import torch

from fixtures.meters import kernels

TIMES = 3


@pytest.mark.capability("determinism")
def test_answers_are_as_deterministic_as_is_claimed(claim, case, device, sides, draw, judge):
    """CLAIM-6: where a claim says so, the same request MUST have the same logits and tokens again, to the bit."""
    (served,) = sides
    ids = served.ids(draw)

    answers = [served.logits_and_tokens(ids) for _ in range(TIMES)]

    same = all(torch.equal(a, b) for again in answers[1:] for a, b in zip(again, answers[0], strict=True))
    judge.claim(claim, "same bits" if same else "other bits")


@pytest.mark.capability("implementation")
def test_attention_is_the_one_that_is_claimed(claim, case, device, sides, bench, draw, judge):
    """CLAIM-7: the attn_implementation in effect MUST be the claimed one, and its kernels those that run."""
    (served,) = sides
    wanted, instead = bench.audit.kernels(claim.word, device)

    with kernels(device, [*wanted, *instead]) as seen:
        served.answer(served.ids(draw))

    judge.claim(claim, served.model.config._attn_implementation)
    judge.ran("kernels", wanted, seen)
    judge.did_not_run("kernels of another", instead, seen)
