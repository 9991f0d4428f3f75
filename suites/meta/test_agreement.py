"""What intervals of agreement promise: they cover the truth, and a pass would have stopped what it says."""

import math

import pytest
import torch

from fixtures.agreement import Agreement, compare, released
from fixtures.oracles import rounding
from fixtures.oracles.rounding_theory import mean_absolute_error
from fixtures.statistics import clustered_mean, clustered_quantile, clustered_share
from fixtures.tokens import floor
from suites.quantization.test_agreement import LENGTH

# As many as the checks ask: 48 documents, and the predictions of each.
DOCUMENTS = torch.arange(48).repeat_interleave(LENGTH - 1)
TRIALS = 600


def divergences(draw, mean=1.0):
    """KL divergences as they are measured: a heavy tail over tokens, and documents that differ by a fifth."""
    level = (0.2 * torch.randn(48, generator=draw, dtype=torch.float64)).exp()[DOCUMENTS]
    tail = (1.5 * torch.randn(len(DOCUMENTS), generator=draw, dtype=torch.float64)).exp()
    return mean * level * tail / math.exp(0.2**2 / 2 + 1.5**2 / 2)


def share(events):
    """A share with three standard errors of what so many trials can tell."""
    found = sum(events) / len(events)
    return found, 3 * math.sqrt(max(found * (1 - found), 1e-3) / len(events))


def test_an_interval_of_the_mean_covers_the_truth():
    draw = torch.Generator().manual_seed(0)
    found = [clustered_mean(divergences(draw), DOCUMENTS) for _ in range(TRIALS)]

    covered, error = share([i.low <= 1 <= i.high for i in found])

    assert covered > 0.95 - 0.02 - error  # 48 clusters with a heavy tail cover a little less


def test_an_interval_of_top_1_covers_the_truth():
    draw = torch.Generator().manual_seed(1)
    events = []
    for _ in range(TRIALS):
        level = 0.7 + 0.05 * torch.randn(48, generator=draw, dtype=torch.float64)[DOCUMENTS]
        found = clustered_share(torch.rand(len(DOCUMENTS), generator=draw, dtype=torch.float64) < level, DOCUMENTS)
        events.append(found.low <= 0.7 <= found.high)
    covered, error = share(events)

    assert abs(covered - 0.95) < 0.01 + error


def test_an_interval_of_a_percentile_covers_the_truth():
    draw = torch.Generator().manual_seed(2)
    truth = float(_quantile(draw))
    covered, error = share(
        [(i := clustered_quantile(divergences(draw), DOCUMENTS, 0.99)).low <= truth <= i.high for _ in range(TRIALS)]
    )

    assert covered > 0.95 - 0.03 - error


def _quantile(draw):
    return torch.cat([divergences(draw) for _ in range(300)]).sort().values[int(0.99 * 300 * len(DOCUMENTS))]


def test_a_pass_would_have_stopped_what_it_says():
    draw = torch.Generator().manual_seed(3)
    limit = 1.5
    example = clustered_mean(divergences(draw), DOCUMENTS)
    _, _, told = example.against(ideal=0, low=None, high=limit)
    caught = float(told.split("true value of ")[1].split(" or more")[0])

    outcomes = [
        clustered_mean(divergences(draw, caught), DOCUMENTS).against(ideal=0, low=None, high=limit)[0]
        for _ in range(TRIALS)
    ]
    stopped, error = share([outcome != "passed" for outcome in outcomes])

    # One interval's own width stands for all of them.
    assert stopped > 0.95 - 0.05 - error


def two(p, q):
    """The agreement of two models that answer every token with the same logits, on two texts."""
    answers = [torch.tensor(x).expand(1, 9, -1) for x in (p, q)]
    return compare(
        lambda number, ids: released(answers[0]), lambda ids: answers[1], [torch.zeros(1, 9, dtype=torch.long)] * 2
    )


def test_numbers_that_exclude_each_other_are_the_harness_fault():
    found = two([2.0, 1.0, 0.0], [1.0, 2.0, 0.0])
    found.refuse_contradictions()
    wrong = Agreement(**{**vars(found), "distance": found.distance * 0.1})

    with pytest.raises(ValueError, match="16 tokens exclude each other"):
        wrong.refuse_contradictions()


def test_a_change_at_a_margin_within_noise_is_explained():
    found = two([2.0, 1.9, 0.0], [1.9, 2.0, 0.0])
    count, unexplained = found.flips(floor(torch.bfloat16))

    assert (count, unexplained) == (16, [])
    assert len(found.flips(floor(torch.float32))[1]) == 16


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_noise_changes_as_many_first_choices_as_its_divergence_says(noise):
    draw = torch.Generator().manual_seed(4)
    p = torch.randn(2000, 300, generator=draw, dtype=torch.float64) * 2
    answers = p[None], (p + noise * torch.randn(p.shape, generator=draw, dtype=torch.float64))[None]
    ids = torch.zeros(1, 2000, dtype=torch.long)
    documents = [torch.arange(2000) % 40]
    found = compare(lambda number, ids: released(answers[0]), lambda ids: answers[1], [ids], documents)

    # More than one rival counts where noise is large: what is predicted knows of the nearest only.
    assert 0.7 < found.flips_against_chance().estimate < 1.6


@pytest.mark.parametrize("scheme", sorted(rounding.PUBLISHED))
def test_theory_is_what_the_authors_of_a_code_book_measured(scheme):
    expectation, spread = mean_absolute_error(rounding.SCHEMES[scheme].book, rounding.BLOCK)
    ((mean, deviation),) = rounding.PUBLISHED[scheme]

    assert abs(expectation - mean) < deviation / 4
    assert abs(spread / 128 / deviation - 1) < 0.1  # 1024 × 1024 weights are 128² blocks


def test_every_scheme_has_limits_for_every_size():
    from fixtures.agreement import expected

    for scheme in rounding.SCHEMES:
        for parameters in (10**8, 3 * 10**9, 10**11):
            limits = expected(scheme, parameters)
            assert limits["perplexity_low"] < 1 < limits["perplexity_high"]
            assert limits["source"]
