"""A run of a seed that did not come to its end is gone on with: what it lacks is no quiet check."""

import json

import pytest

from suites.meta import seeds

ASK = ["suites/attention/test_accuracy.py", "-k", "mha-33-full-sdpa- and float32-cpu"]


@pytest.fixture
def report(tmp_path, monkeypatch):
    """The folder of a run of three checks."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    assert len(seeds.records(tmp_path / "7", 7, ASK, whole=True)) == 3
    return tmp_path / "7"


def test_a_run_that_was_killed_is_gone_on_with(report):
    facts = json.loads((report / "run.json").read_text(encoding="utf-8"))
    begun = {name: fact for name, fact in facts.items() if name not in ("verdict", "terms", "sha256")}
    (report / "run.json").write_text(json.dumps(begun), encoding="utf-8")
    whole = (report / "records.jsonl").read_text(encoding="utf-8")
    (report / "records.jsonl").write_text(whole.splitlines(keepends=True)[0], encoding="utf-8")

    assert len({record.check for record in seeds.records(report, 7, ASK, whole=True)}) == 3


def test_a_run_that_is_there_is_not_asked_again(report, monkeypatch):
    monkeypatch.setattr(pytest, "main", None)

    assert len(seeds.records(report, 7, ASK, whole=True)) == 3


def test_a_run_that_does_not_come_to_its_end_is_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(pytest, "main", lambda arguments: 2)

    with pytest.raises(RuntimeError, match=r"the run of seed 7 in .* has not come to its end"):
        seeds.records(tmp_path / "7", 7, ASK, whole=True)
