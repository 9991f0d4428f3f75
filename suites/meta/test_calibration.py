"""What is said of false alarms follows from what was measured."""

import json
import math

import pytest

from fixtures.waivers import Waiver
from reports.record import Record
from suites.meta import allowance, calibrate, held_out
from suites.meta import tables as healthy
from suites.meta.allowance import derived
from suites.meta.false_alarms import beyond, tails_of, to_expect
from suites.meta.tables import Sample, samples, write_table

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
    monkeypatch.setattr(healthy, "TABLES", tmp_path)
    tail = [1 - 0.1 * math.log(n / 100.5) for n in range(1, 101)]
    many = [Sample(value, "t.py::test_many[a]") for value in [*[0.5] * 899, 1.0, *tail]]
    few = [Sample(0.7, "t.py::test_few[b]") for _ in range(12)]
    found = {("ATTN-1", "overall", "float32", "a"): many, ("ATTN-1", "overall", "float32", "b"): few}
    write_table("cpu", found, "2026-01-01, made up")
    return healthy.every_row()


def test_a_tail_is_fitted_to_all_subjects_of_a_slack(tables):
    found = tails_of(tables)

    assert found == {("ATTN-1", "overall", "float32"): pytest.approx(0.1, rel=0.05)}


def test_the_alarms_to_expect_are_those_of_the_numbers_that_a_run_judges(tables):
    judged = {"outcome": "passed", "judgements": (number(0.6),)}
    records = [Record(**ABOUT | judged | {"parameters": {"attention": name}}) for name in "aabz"]
    key = "ATTN-1", "overall", "float32"
    tail, allowed = tails_of(tables)[key], derived(tables)[key]

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
    monkeypatch.setattr(healthy, "known_failures", lambda: (known,))
    judged = {"outcome": "passed", "judgements": (number(0.6),), "environment": {"versions": {"torch": installed}}}

    assert len(samples([Record(**ABOUT | judged)])) == count


STACK = {"cpu": "a CPU", "versions": {"torch": "2.13.0", "numpy": "2.5.2"}}


@pytest.fixture
def run(tmp_path):
    """The folder of a run that was judged, whose checks passed with 0.6 but for what is given of each."""

    def made(name, *changes, stack=STACK):
        folder = tmp_path / name
        folder.mkdir()
        told = {"outcome": "passed", "judgements": [number(0.6)], "environment": stack}
        lines = [Record(**ABOUT | told | change).line() for change in changes]
        (folder / "records.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        about = {"started": f"2026-01-0{len(name)} 10:00:00 +0000", "seed": 7, "terms": {"scope": "attention only"}}
        (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
        return folder

    return made


@pytest.fixture
def made(tmp_path, monkeypatch):
    """What the command says of a new table, and the rows that it is read back as."""
    monkeypatch.setattr(healthy, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(calibrate, "LEDGER", tmp_path / "slacks.toml")

    def make(capsys, *runs):
        assert calibrate.main(["--name", "mine", "--from", *map(str, runs)]) == 0
        return capsys.readouterr().out, healthy.every_row()

    return make


def test_a_table_is_made_of_runs_that_were_judged(run, made, tmp_path, capsys):
    off = {"outcome": "failed", "judgements": [number(0.9)], "check": "suites/attention/test_it.py::test_it[y]"}

    printed, ((table, row),) = made(capsys, run("a", {}, {}), run("bb", off))

    assert (table, row["measured"], row["where"]) == ("mine", "2026-01-02", "test_it[y]")
    assert [row[name] for name in ("promise", "subject", "samples", "checks")] == ["ATTN-1", "x", "3", "2"]
    assert [row[name] for name in ("median", "maximum")] == ["0.6", "0.9"]
    assert printed == ""
    first = (tmp_path / "tables" / "mine.tsv").read_text(encoding="utf-8").split("\n")[0]
    assert first == "# 2026-01-02, judged runs: seeds 7, 7 of attention only, a CPU, torch 2.13.0"
    assert "slack = 1.8\nhealthy = 0.9" in (tmp_path / "slacks.toml").read_text(encoding="utf-8")


def test_what_did_not_measure_or_is_wrong_is_left_out_of_a_table_and_said(run, made, capsys):
    broke = {"outcome": "failed", "crash": True, "message": "out of luck"}
    wrong = {"outcome": "failed", "judgements": [number(0.9), number("odd") | {"headroom": None, "outcome": "failed"}]}
    known = wrong | {"outcome": "waived"}

    printed, ((_, row),) = made(capsys, run("a", {}, broke, wrong, known))

    assert (row["samples"], row["maximum"]) == ("1", "0.6")
    assert printed.splitlines() == [
        f"left out: {ABOUT['check']} did not measure: out of luck",
        f"left out: {ABOUT['check']} is not healthy: overall is odd",
    ]


def test_a_table_is_of_one_stack(run, made, capsys):
    with pytest.raises(ValueError, match=r"of a CPU, torch 2\.11\.0; of a CPU, torch 2\.13\.0"):
        made(capsys, run("a", {}), run("b", {}, stack=STACK | {"versions": {"torch": "2.11.0"}}))


def test_a_table_is_held_to_what_the_others_allow(tables, tmp_path, capsys):
    key = "ATTN-1", "overall", "float32"
    low, high = Sample(0.4, "t.py::test_it[a]"), Sample(5.0, "t.py::test_it[b]")
    write_table("other", {(*key, "a"): [low, high, high], (*key, "b"): [low]}, "2026-01-01, made up")

    beyond, within = sorted(held_out.held_out(), key=lambda row: -row.measured)
    code = held_out.main()

    # The first table, of 1,012 numbers, is not held to the four of the other.
    assert beyond == ("other", "ATTN-1 overall float32", 5.0, pytest.approx(2.3, abs=0.8), "test_it[b]", 3)
    assert (beyond.is_beyond, within.is_beyond, within.numbers) == (True, False, 1)
    assert (code, capsys.readouterr().out.splitlines()[-1]) == (
        1,
        "1 of 2 rows, of 4 numbers, reach beyond: 0.01 to 1 of rows, at 95 %",
    )


def test_logits_of_whole_models_are_allowed_more_than_one_operators_output():
    factors = [allowance.factor((p, "worst row", "float32")) for p in ("ATTN-1", "ATTN-2", "KV-10", "POS-1", "POS-3")]

    assert factors == [2, 3, 3, 2, 3]
    assert allowance.factor(("KV-1", "plain reference", "float32")) == 10
    assert allowance.factor(("KV-21", "rounding ÷ textbook's", "any")) == 2
