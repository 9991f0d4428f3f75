"""One fault, asked: the same checks without it and with it, in this process, and what that comes to."""

from __future__ import annotations

import contextlib
import datetime
import gc
import io
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fixtures import environment, heap
from reports.record import Record, parse, read
from reports.summary import reason
from suites import checks
from suites.meta.faults import Fault
from suites.meta.faults.equivalent import Equivalent, shown

ROOT = Path(__file__).parent.parent.parent
MARKS = {"cpu": ("-m", "not gpu"), "cuda": ("-m", "gpu")}

# What a fault cannot get at is not here to be wrong.
LACKING = (ImportError, AttributeError, KeyError)


@dataclass
class Asker:
    """Asks with and without faults, in this process; without one, each question once. device, dtype: empty for all."""

    folder: Path
    device: str = ""
    dtype: str = ""
    healthy: dict[Any, tuple[list[Record], str]] = field(default_factory=dict)
    runs: int = 0

    def ask(self, fault: Fault) -> dict[str, Any]:
        """What a fault comes to: what teeth.jsonl says of it."""
        start = time.monotonic()
        question = fault.checks, fault.claims, fault.options, fault.states
        if question not in self.healthy:
            self.healthy[question] = self._run(fault)
        healthy, said = self.healthy[question]
        noticed, why, injected = Noticed({record.check for record in healthy}), _last(said), True
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(fault.inject())
            except LACKING as error:
                faulty, why, injected = [], f"it cannot be injected: {type(error).__name__}: {error}", False
            else:
                faulty, _ = self._run(fault, noticed)
        devices = devices_of(fault, self.device)
        ends = {d: end_of(fault, _of(d, healthy), _of(d, faulty), why, injected=injected) for d in devices}
        return row_of(fault, ends, time.monotonic() - start)

    def _run(self, fault: Fault, *plugins: object) -> tuple[list[Record], str]:
        """A conformance run in this process, of the checks that ought to see a fault: its records and its output."""
        path, words = fault.checks
        self.runs += 1
        report, deployment = self.folder / str(self.runs), self.folder / "deployment.toml"
        deployment.write_text(f"[claims]\ncapabilities = {list(fault.claims)}\n{fault.states}", encoding="utf-8")
        fixed = [f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}", "-p", "no:terminalprogress"]
        fixed += ["-p", "no:unraisableexception"]  # which collects ten times over
        asked = [f"{ROOT / 'suites' / path}", "-k", f"({words}) and {self.dtype}" if self.dtype else words]
        more = [f"--report={report}", f"--deployment={deployment}", *MARKS.get(self.device, ()), *fault.options]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), mock.patch.dict(os.environ):
            for name in ("GITHUB_STEP_SUMMARY", "PYTEST_XDIST_WORKER"):  # of the run that this one is inside of
                os.environ.pop(name, None)
            if pytest.main([*fixed, *asked, *more], plugins=list(plugins)) == pytest.ExitCode.INTERRUPTED:
                raise KeyboardInterrupt
        gc.collect()  # a run's models lie in cycles
        heap.freeze()
        found = report / "records.jsonl"
        records = read(found) if found.exists() else []
        shutil.rmtree(report, ignore_errors=True)
        return records, said.getvalue()


@dataclass(eq=False)
class Noticed:
    """A pytest plugin: asks no checks but the healthy run's, and no promise again that has rejected a fault.

    A promise has rejected it on a device in a dtype. What is not asked is not collected either, which took longest.
    """

    same: set[str]
    by: set[tuple[str, str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.functions = {check.split("[")[0] for check in self.same}

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(self, collector: pytest.Collector, name: str) -> list[pytest.Item] | None:
        left_out = name.startswith("test_") and f"{collector.nodeid}::{name}" not in self.functions
        return [] if left_out else None

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Any:
        report = yield
        report.result = [n for n in report.result if not isinstance(n, pytest.Item) or n.nodeid in self.same]
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        about = checks.about(item)
        return (about["promise"], about["device"], about["parameters"].get("dtype", "none")) in self.by or None

    def pytest_runtest_logreport(self, report: Any) -> None:
        if line := getattr(report, "record", ""):
            record = parse(line)
            if _rejects(record):
                self.by.add((record.promise, record.device, _dtype(record)))


def devices_of(fault: Fault | Equivalent, asked: str) -> Sequence[str]:
    """The devices that a fault is asked of, where one of them or, empty, all of them are: a mutant's is the CPU."""
    everywhere = environment.probe().devices if isinstance(fault, Fault) else ("cpu",)
    return (asked,) if asked else everywhere


def _of(device: str, records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.device == device]


def _dtype(record: Record) -> str:
    return record.parameters.get("dtype", "none")


def _rejects(record: Record) -> bool:
    return record.outcome == "failed" and not record.crash


def _last(said: str) -> str:
    """Of a run without a check, the line that says so."""
    return next((line.strip("= ") for line in reversed(said.splitlines()) if line.strip("= ")), "nothing was said")


def end_of(
    fault: Fault, healthy: Sequence[Record], faulty: Sequence[Record], lacking: str, *, injected: bool
) -> dict[str, Any]:
    """What a fault comes to on a device, by its checks there without and with it.

    lacking: why there is no check of it, or why it was not injected.
    """
    passed = [r for r in healthy if r.outcome == "passed" and r.area == fault.area]
    same = {r.check for r in passed}
    asked = [r for r in faulty if r.check in same]
    rejected = {r.promise for r in asked if _rejects(r)}
    dtypes: dict[str, bool] = {}
    for record in asked:
        dtypes[_dtype(record)] = dtypes.get(_dtype(record), False) or _rejects(record)
    outcome, why = "detected", ""
    if not healthy or not injected:
        outcome, why = "not applicable here", lacking
    elif not passed and not (unexcused := [r for r in healthy if not r.waiver]):
        outcome, why = "not applicable here", f"known to fail on this stack: {healthy[0].waiver['reason']}"
    elif not passed:
        outcome, why = "healthy side did not pass", reason(unexcused[0])
    elif not rejected:
        others = sorted((r for r in asked if r.outcome != "passed"), key=lambda r: (not r.crash, r.outcome))
        outcome = "crashed" if not asked or (others and others[0].crash) else "inconclusive" if others else "passed"
        why = reason(others[0]) if others else f"{len(asked)} checks, none failed" if asked else "no check was run"
    order = sorted(rejected, key=lambda promise: (promise != fault.promise, promise))
    alarms = [f"{r.check}: {reason(r)}" for r in healthy if r.outcome not in ("passed", "waived")]
    return {"outcome": outcome, "why": why, "rejected": order, "dtypes": dtypes, "alarms": alarms}


def row_of(fault: Fault | Equivalent, devices: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    told = {"fault": fault.name, "statement": fault.statement, "promise": fault.promise, "area": fault.area}
    now = datetime.datetime.now().astimezone()
    return told | {"devices": devices, "seconds": round(seconds, 2), "when": f"{now:%Y-%m-%d %H:%M:%S %z}"}


def asked_of(fault: Fault | Equivalent, asker: Asker) -> dict[str, Any]:
    """What a fault, or an equivalent mutant, comes to."""
    if isinstance(fault, Fault):
        return asker.ask(fault)
    start = time.monotonic()
    acted, judge = shown(fault)
    off = [j.sentence() for j in judge.judgements if j.outcome != "passed"]
    outcome, why = ("not equivalent", "; ".join(off or ["it did not act"])) if off or not acted else ("equivalent", "")
    end = {"outcome": outcome, "why": why or fault.why, "rejected": [], "dtypes": {}, "alarms": []}
    return row_of(fault, {"cpu": end}, time.monotonic() - start)
