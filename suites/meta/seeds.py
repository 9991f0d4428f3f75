"""The run of a seed: asked for once, and gone on with where it was killed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from reports import render
from reports.record import Record, read
from reports.verdict import STOPPED
from suites.meta.tables import ROOT


def records(report: Path, seed: int, ask: Sequence[str], *, whole: bool) -> list[Record]:
    """What the run in `report` has recorded, which is asked for unless it is there to its end; `ask` goes to pytest.

    One that is not whole leaves out the served model, which no seed changes. Raises RuntimeError for one that does not
    come to its end: a check that it lacks would count as a quiet one.
    """
    if not _ended(report):
        small = [] if whole or "-k" in ask else ["-k", "not served"]
        where = "resume" if (report / "records.jsonl").exists() else "report"
        fixed = [f"--rootdir={ROOT}", "-q", "--no-header", "--tb=line"]
        pytest.main([*fixed, f"--seed={seed}", f"--{where}={report}", *small, *ask])
    if not _ended(report):
        raise RuntimeError(f"the run of seed {seed} in {report} has not come to its end; ask again to go on with it")
    return read(report / "records.jsonl")


def _ended(report: Path) -> bool:
    if not (report / "run.json").exists():
        return False
    _, run, _ = render.load(report)
    return STOPPED not in run["verdict"]["sentence"]
