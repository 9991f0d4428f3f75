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
    short = ids[:, : ids.shape[1] // 2]

    # A shorter request is asked before and after: what serves may be sized by the longest that it has met.
    alone = served.logits_and_tokens(short)
    first, *others = (served.logits_and_tokens(ids) for _ in range(TIMES))
    pairs = [*((first, again) for again in others), (alone, served.logits_and_tokens(short))]

    same = all(torch.equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))
    judge.claim(claim, "same bits" if same else "other bits")


@torch.no_grad()
@pytest.mark.capability("implementation")
def test_attention_is_the_one_that_is_claimed(claim, case, device, sides, bench, draw, judge):
    """CLAIM-7: the attn_implementation in effect MUST be the claimed one, and its kernels those that run."""
    (served,) = sides
    wanted, instead = bench.audit.kernels(claim.word, device)
    ids = served.ids(draw)
    step = served.steps(ids, 1)  # which has kernels of its own, and falls back on its own

    with kernels(device, [*wanted, *instead]) as seen:
        served.answer(ids)
    with kernels(device, [*wanted, *instead]) as seen_in_a_step:
        step()

    judge.claim(claim, served.model.config._attn_implementation)
    for what, ran in (("kernels", seen), ("kernels of a step", seen_in_a_step)):
        judge.ran(what, wanted, ran)
        judge.did_not_run(f"{what}, of another", instead, ran)
