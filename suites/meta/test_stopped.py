"""A run that was stopped, wherever, is readable, and is finished without losing or repeating a check."""

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from reports import render, run
from reports.record import append, read
from reports.run import Run
from suites.meta.conftest import FAILS, PASSES, ROOT
from suites.meta.test_report import RECORD

# A run of checks that cost next to nothing, in a process that imports nothing heavy and says when it has begun.
PROGRAM = """
import datetime, sys
from pathlib import Path
from reports import run, verdict
from reports.record import Record
folder, now = Path(sys.argv[1]), datetime.datetime.now()
going = run.begin(folder, {}, {}, [], now, {}, folder if (folder / "records.jsonl").exists() else None)
print("about to open", flush=True)
going.open()
for check in (f"a.py::test[{i}]" for i in range(1500)):
    if check not in going.judged:
        going.add(Record(check, "A-1", "it MUST", "a", "passed", evidence={"text": "x" * 500}).line())
terms = {"owed": ["A-1"], "scope": "all"}
going.close(verdict.judge(going.records, **terms), terms)
"""


def test_a_run_killed_twenty_times_loses_nothing_and_judges_nothing_twice(tmp_path):
    draw, folder = random.Random(0), tmp_path / "run"
    kept = []
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", PROGRAM, folder], cwd=ROOT, stdout=subprocess.PIPE) as running:
            running.stdout.readline()
            time.sleep(draw.uniform(0, 0.05))
            running.send_signal(signal.SIGKILL)
        assert running.returncode == -signal.SIGKILL
        records, facts, _ = render.load(folder)
        records, facts, _ = render.load(folder)
        assert records[: len(kept)] == kept
        assert facts["verdict"]["name"] in ("partial", "unverified") or len(records) == 1500
        kept = records

    subprocess.run([sys.executable, "-c", PROGRAM, folder], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    records, facts, _ = render.load(folder)
    assert records[: len(kept)] == kept
    assert [r.check for r in records] == [f"a.py::test[{i}]" for i in range(1500)]
    assert facts["verdict"]["sentence"] == "conformant: 1500 passed (all)"
    assert len(facts["resumed"]) >= 5  # the others were killed before they had begun


CHECKS = [PASSES, PASSES.replace("test_holds", "test_also_holds"), FAILS]


@pytest.fixture
def killed(verdict_of, tmp_path):
    """A run of three checks as it lies there when it was killed while the second one's record was written."""
    first, second, _ = verdict_of(CHECKS).records
    (folder,) = tmp_path.glob("run-*")
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "verdict"}), encoding="utf-8")
    (folder / "records.jsonl").write_text(f"{first.line()}\n{second.line()[:50]}", encoding="utf-8")
    return folder


def test_a_run_that_was_killed_is_finished(verdict_of, killed):
    (kept,) = read(killed / "records.jsonl")

    found = verdict_of(CHECKS, "", f"--resume={killed}")

    records = read(killed / "records.jsonl")
    assert found.verdict.startswith("non-conformant: 2 passed, 1 failed"), found.printed
    assert found.code == 1
    assert records[0] == kept
    assert len({r.check for r in records}) == len(records) == 3


def test_a_run_that_was_killed_can_be_rendered(killed):
    render.main([str(killed)])

    assert "**partial: 1 passed; no check of TEST-2; stopped before its end (" in (killed / "report.md").read_text(
        "utf-8"
    )


def test_what_was_not_verified_is_tried_again(verdict_of, killed):
    (kept,) = read(killed / "records.jsonl")
    lost = dataclasses.replace(kept, outcome="unverified", message="the GPU disappeared during the run")
    (killed / "records.jsonl").write_text(f"{lost.line()}\n", encoding="utf-8")

    found = verdict_of(CHECKS, "", f"--resume={killed}")

    assert found.verdict.startswith("non-conformant: 2 passed, 1 failed"), found.printed


@pytest.mark.parametrize(
    ("deployment", "options", "told"),
    [
        ("", ["--seed=1"], "seed was 0 and is 1"),
        ("", ["--tier=full"], "tier was 'standard' and is 'full'"),
        ("[deployment]\nname = 'another'", [], "deployment was 'embedded default' and is 'another'"),
        ("", ["-k", "holds"], "scope was"),
    ],
)
def test_a_run_is_not_finished_on_anything_else(verdict_of, killed, deployment, options, told):
    found = verdict_of(CHECKS, deployment, f"--resume={killed}", *options)

    assert found.code == 4
    assert told in found.printed
    assert len(read(killed / "records.jsonl")) == 1


def test_a_run_is_not_finished_on_another_stack(tmp_path):
    Run(tmp_path, {"versions": {"torch": "2.6"}}, {"programs": "a"}).open()

    with pytest.raises(ValueError, match=r"programs was 'a' and is 'b'; versions was {'torch': '2\.6'} and is"):
        Run(tmp_path, {"versions": {"torch": "2.7"}}, {"programs": "b"}, former=[]).open()


def test_a_full_disk_leaves_no_half_of_a_record(tmp_path, monkeypatch):
    file, write = tmp_path / "records.jsonl", os.write
    append(file, RECORD.line())

    def full(descriptor, data):
        if len(data) < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:100])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        append(file, RECORD.line())

    assert file.read_text(encoding="utf-8") == f"{RECORD.line()}\n"


def test_a_run_on_a_full_disk_stops_and_says_so(verdict_of, monkeypatch):
    def full(path, record, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run, "append", full)
    found = verdict_of(CHECKS)

    assert "cannot be written: [Errno 28] No space left on device" in found.printed
    assert "stopped before its end" in found.verdict
    assert found.code == 2
