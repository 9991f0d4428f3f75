"""What a judge lets pass and what not."""

import math

import pytest
import torch

from fixtures.judgement import Inconclusive, Judge, Rejected
from fixtures.slacks import LEDGER
from fixtures.statistics import Interval, clustered_mean, clustered_share


def three(dtype=torch.bfloat16):
    """A candidate that equals the reference, the reference, and golden."""
    draw = torch.Generator().manual_seed(0)
    golden = torch.randn(1, 4, 200, 64, generator=draw, dtype=torch.float64)
    reference = golden.to(dtype)
    return reference.clone(), reference, golden


def concluded(change):
    candidate, reference, golden = three()
    judge = Judge("ATTN-1")
    judge(change(candidate), reference, golden)
    return judge


def test_a_reference_passes_beside_itself():
    concluded(lambda c: c).conclude()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_fails(value):
    def change(c):
        c[0, 3, 150, 7] = value
        return c

    with pytest.raises(Rejected, match=r"1 of 51200 values are not finite, the first is .* at \[0, 3, 150, 7\]"):
        concluded(change).conclude()


def test_one_wrong_row_fails_and_is_named():
    def change(c):
        c[0, 2, 199] *= 1.05
        return c

    with pytest.raises(Rejected, match=r"worst row.*row \[0, 2, 199\] of \[1, 4, 200\]"):
        concluded(change).conclude()


def test_a_small_gain_fails():
    with pytest.raises(Rejected, match="gain"):
        concluded(lambda c: (c.double() * 1.004).to(c.dtype)).conclude()


def test_another_shape_fails():
    with pytest.raises(Rejected, match="shape"):
        concluded(lambda c: c[..., :1]).conclude()


def test_a_check_that_judges_nothing_is_vacuous():
    with pytest.raises(Rejected, match="vacuous"):
        Judge("ATTN-1").conclude()


def test_a_kernel_that_did_not_run_fails():
    judge = Judge("ATTN-1")
    judge.exactly("anything", 1, 1)
    judge.ran("operators", ["flash"], ["math"])

    with pytest.raises(Rejected, match="none of flash"):
        judge.conclude()


def test_a_quantity_without_a_slack_is_no_pass():
    with pytest.raises(LookupError, match="calibrate"):
        Judge("ATTN-1").within("something new", 1.0)


def ranked(chosen_by):
    """16 tokens of 512, and logits that bfloat16 has put off by 1.2 %; `chosen_by(golden, noise)` ranks them."""
    draw = torch.Generator().manual_seed(0)
    golden, noise, other = (torch.randn(16, 512, dtype=torch.float64, generator=draw) for _ in range(3))
    judge = Judge("TIME-1")
    judge.ranked_first(
        chosen_by(golden, 0.012 * other).argmax(-1).tolist(),
        (golden + 0.012 * noise).bfloat16(),
        golden,
        what="asked",
    )
    return judge


def test_a_token_that_rounding_ranks_first_is_no_error():
    ranked(lambda golden, noise: golden + noise).conclude()
    ranked(lambda golden, noise: golden + 4 * noise).conclude()


def test_one_token_of_another_context_is_an_error_in_bfloat16_too():
    def choose(golden, noise):
        wrong = golden + noise
        wrong[3] = golden[4]
        return wrong

    with pytest.raises(Rejected, match="asked: tokens that are not ranked first: measured 1 , at token 3; allowed 0"):
        ranked(choose).conclude()


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        (Interval(0.5, 0.4, 0.6, 0.05, 40), None),
        (Interval(0.95, 0.9, 1.1, 0.05, 40), Inconclusive),
        (Interval(1.3, 1.1, 1.5, 0.1, 40), Rejected),
        (Interval(math.nan, math.nan, math.nan, math.nan, 40), Rejected),
    ],
)
def test_an_interval_has_three_outcomes(interval, outcome):
    judge = Judge("QUANT-2")
    judge.interval("KL", interval, ideal=0, high=1.0)

    if outcome is None:
        judge.conclude()
        assert "would have stopped a true value of" in judge.judgements[0].detail
    else:
        with pytest.raises(outcome):
            judge.conclude()


def test_an_interval_clustered_by_document_covers_the_truth_at_its_level():
    draw, hits, trials = torch.Generator().manual_seed(1), 0, 400
    documents = torch.arange(48).repeat_interleave(127)
    for _ in range(trials):
        level = torch.randn(48, generator=draw)[documents] * 0.1
        found = clustered_mean(1 + level + torch.randn(len(documents), generator=draw), documents)
        hits += found.low <= 1 <= found.high

    # 95 % of 400, give or take three standard errors
    assert abs(hits / trials - 0.95) < 3 * math.sqrt(0.95 * 0.05 / trials)


def test_no_disagreement_has_an_interval_all_the_same():
    found = clustered_share(torch.ones(480, dtype=torch.bool), torch.arange(48).repeat_interleave(10))

    assert (found.low, found.high) == (1 - 3 / 480, 1.0)


def test_documents_that_miss_alike_leave_an_interval_around_what_was_seen():
    hits = (torch.arange(48 * 63) % 63 != 0).bool()

    found = clustered_share(hits, torch.arange(48).repeat_interleave(63))

    assert found.low < 62 / 63 == found.estimate < found.high < 0.99
    assert found.clusters == 48


def test_agreement_that_is_better_never_has_a_worse_bound():
    documents, lows = torch.arange(48).repeat_interleave(127), []
    for misses in range(0, 60, 5):
        hits = torch.ones(len(documents), dtype=torch.bool)
        hits[torch.randperm(len(hits), generator=torch.Generator().manual_seed(2))[:misses]] = False
        lows.append(clustered_share(hits, documents).low)

    assert lows == sorted(lows, reverse=True)


def test_the_ledger_is_what_the_tables_say():
    from suites.meta.calibrate import derive

    assert LEDGER.read_text(encoding="utf-8") == derive()
