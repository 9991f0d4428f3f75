"""What is said of false alarms follows from what was measured."""

import math

import pytest

from fixtures.deployment import Waiver
from reports.record import Record
from suites.meta import calibrate
from suites.meta.calibrate import Sample, beyond, derived, samples, to_expect, write_table

ABOUT = {
    "promise": "ATTN-1",
    "statement": "it holds",
    "area": "attention",
    "check": "suites/attention/test_it.py::test_it[x]",
    "parameters": {"attention": "x"},
    "subject": "x on cpu",
    "device": "cpu",
}


def number(measured):
    return {"quantity": "overall", "measured": measured, "headroom": 0.1, "outcome": "passed", "dtype": "float32"}


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Of one subject a thousand samples with an exponential tail of 0.1 beyond 1, of another one a dozen below it."""
    monkeypatch.setattr(calibrate, "TABLES", tmp_path)
    tail = [1 - 0.1 * math.log(n / 100.5) for n in range(1, 101)]
    many = [Sample(value, "t.py::test_many[a]") for value in [*[0.5] * 899, 1.0, *tail]]
    few = [Sample(0.7, "t.py::test_few[b]") for _ in range(12)]
    found = {("ATTN-1", "overall", "float32", "a"): many, ("ATTN-1", "overall", "float32", "b"): few}
    write_table(tmp_path / "cpu.tsv", found, "2026-01-01, made up")
    return list(calibrate._rows())


def test_a_tail_is_fitted_to_all_subjects_of_a_slack(tables):
    found = calibrate._tails(tables)

    assert found == {("ATTN-1", "overall", "float32"): pytest.approx(0.1, rel=0.05)}


def test_the_alarms_to_expect_are_those_of_the_numbers_that_a_run_judges(tables):
    judged = {"outcome": "passed", "judgements": (number(0.6),)}
    records = [Record(**ABOUT | judged | {"parameters": {"attention": name}}) for name in "aabz"]
    key = "ATTN-1", "overall", "float32"
    tail, allowed = calibrate._tails(tables)[key], derived(tables)[key]

    rate, known, unknown = to_expect(records)

    assert rate == pytest.approx(2 * beyond(1.0, tail, allowed) + beyond(0.7, tail, allowed))
    assert (known, unknown) == (3, 1)


@pytest.mark.parametrize(
    ("allowed", "probable"), [(0.5, 0.1), (1.0, 0.1), (1.1, 0.1 / math.e), (2.0, 0.1 * math.e**-10)]
)
def test_what_is_allowed_beyond_the_tenth_percentile_is_exponentially_rare(allowed, probable):
    assert beyond(1.0, 0.1, allowed) == pytest.approx(probable)


def test_the_ledger_knows_the_day_of_each_measurement(tables):
    assert 'measured = "2026-01-01"' in calibrate.derive()


@pytest.mark.parametrize(("installed", "count"), [("2.11.0", 0), ("2.13.0", 1)])
def test_what_is_known_to_fail_on_the_stack_of_a_record_is_no_sample(monkeypatch, installed, count):
    known = Waiver("mended later", "us", "", promise="ATTN-1", versions={"torch": "<2.12"})
    monkeypatch.setattr(calibrate, "known_failures", lambda: (known,))
    judged = {"outcome": "passed", "judgements": (number(0.6),), "environment": {"versions": {"torch": installed}}}

    assert len(samples([Record(**ABOUT | judged)])) == count
