"""Before you trust green, see it red: `python -m suites.meta.teeth` injects each fault and asks who notices.

Detected is a fault of which a judgement of its own area failed, while the same check passed without it in the same
process; a crash is no detection. What a fault came to is a line of teeth.jsonl as soon as it is known: what is there of
this suite, on this stack, is not asked again. Exits with 1 where a fault was missed, with 5 where none was asked.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from fixtures import environment, folders, heap
from reports import run, teeth
from reports.files import write_text
from reports.record import Record, parse, read
from reports.summary import reason
from suites import checks
from suites.meta.faults import FAULTS, Fault
from suites.meta.faults.equivalent import EQUIVALENT, Equivalent, shown

ROOT = Path(__file__).parent.parent.parent
AREAS = sorted({fault.area for fault in FAULTS.values()})
MARKS = {"cpu": ("-m", "not gpu"), "cuda": ("-m", "gpu")}

# What is held to seconds wants the machine for itself: on an H200 that eight processes shared, a ratio of 0.51 came
# with an interval from 0.29 to 0.92, and was no verdict.
TIMED = "claims/test_speed.py"

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
        devices = _devices(fault, self.device)
        ends = {d: _end(fault, _of(d, healthy), _of(d, faulty), why, injected=injected) for d in devices}
        return _row(fault, ends, time.monotonic() - start)

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


def _devices(fault: Fault | Equivalent, asked: str) -> Sequence[str]:
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


def _end(
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


def _row(fault: Fault | Equivalent, devices: Mapping[str, Any], seconds: float) -> dict[str, Any]:
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
    return _row(fault, {"cpu": end}, time.monotonic() - start)


@dataclass
class Journal:
    """teeth.jsonl: what is known already, and what comes to it. `common`: what every line says of suite and stack."""

    path: Path
    common: Mapping[str, Any]

    def add(self, row: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({**row, **self.common}, sort_keys=True)
        with self.path.open("a+b") as file:
            cut = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write(b"\n" * bool(cut) + line.encode() + b"\n")

    def rows(self) -> list[dict[str, Any]]:
        """Of each fault what was found last, of this suite on this stack."""
        found = teeth.read(self.path) if self.path.exists() else []
        common = json.loads(json.dumps(self.common))
        mine = [row for row in found if {key: row.get(key) for key in common} == common]
        return list({row["fault"]: row for row in mine}.values())


def common(device: str = "", dtype: str = "") -> dict[str, Any]:
    """What two answers must have in common for one to stand for the other."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "suites" / "meta").glob("**/*.py")):
        if path.parent.name == "faults" or path == Path(__file__):
            digest.update(path.name.encode() + path.read_bytes())
    here = teeth.stack(environment.probe().as_dict())
    asked = {"device": device, "dtype": dtype}
    return {"programs": run.checksum(), "faults": digest.hexdigest()[:16], "stack": here, "asked": asked}


def groups(faults: Iterable[Fault | Equivalent]) -> list[list[str]]:
    """Names of faults, those together that are asked of one file, which have questions in common; the largest first."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for fault in faults:
        found[(fault.checks[0], *fault.options)].append(fault.name)
    return sorted(found.values(), key=lambda group: (-len(group), group))


def shard(of: Sequence[list[str]], part: str) -> list[list[str]]:
    """The i-th of n parts, `i/n`, which together are all and have about as many faults each."""
    index, count = (int(number) for number in part.split("/"))
    if not 1 <= index <= count:
        raise ValueError(f"{part} is no part: the first of two is 1/2")
    parts: list[list[list[str]]] = [[] for _ in range(count)]
    for group in of:
        min(parts, key=lambda chosen: sum(map(len, chosen))).append(group)
    return parts[index - 1]


def work(wanted: Iterable[list[str]], now: Any, journal: Journal, threads: int) -> None:
    """Ask groups of faults one after the other, as long as whoever began this is there; `now` names the one at hand."""
    parent, every = os.getppid(), FAULTS | EQUIVALENT
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        asker = Asker(Path(folder), **journal.common["asked"])
        for name in (name for group in wanted for name in group):
            if os.getppid() != parent:
                return
            now.value = name.encode()
            row = asked_of(every[name], asker)
            journal.add(row)
            now.value = b""
            print(*_progress(row), sep="\n", flush=True)


def work_apart(*what: Any) -> None:
    """The same in a process of multiprocessing, and nothing of it is left behind."""
    try:
        work(*what)
    finally:
        folders.remove()


def _progress(row: Mapping[str, Any]) -> Iterator[str]:
    for device, end in row["devices"].items():
        why = f": {end['why']}" if end["why"] else ""
        yield f"{row['promise']} {row['fault']} on {device}: {end['outcome']}{why} ({row['seconds']:.1f} s)"


def conduct(wanted: Sequence[list[str]], journal: Journal, workers: int, threads: int) -> None:
    """Ask all that the journal does not know, in processes of their own: a fault that ends its process has crashed.

    They are forks of this one, which has imported everything; with CUDA at work in here they begin anew.
    """
    forks = sys.platform == "linux" and not torch.cuda.is_initialized()
    context: Any = multiprocessing.get_context("fork" if forks else "spawn")
    every = FAULTS | EQUIVALENT
    if not workers:
        work(_left(wanted, journal), context.Array("c", 128, lock=False), journal, threads)
    while workers and (left := _left(wanted, journal)):
        queue, crew = context.SimpleQueue(), []
        for _ in range(min(workers, len(left))):
            now = context.Array("c", 128, lock=False)
            process = context.Process(
                target=work_apart, args=(iter(queue.get, None), now, journal, threads), daemon=True
            )
            process.start()
            crew.append((process, now))
        for group in [*left, *[None] * len(crew)]:
            queue.put(group)
        for process, now in crew:
            process.join()
            if process.exitcode and not now.value:
                raise RuntimeError(f"a worker ended with {process.exitcode} beside its faults")
            if process.exitcode:
                journal.add(_crashed(every[now.value.decode()], f"its process ended with {process.exitcode}", journal))


def _crashed(fault: Fault | Equivalent, how: str, journal: Journal) -> dict[str, Any]:
    end = {"outcome": "crashed", "why": how, "rejected": [], "dtypes": {}, "alarms": []}
    return _row(fault, dict.fromkeys(_devices(fault, journal.common["asked"]["device"]), end), 0.0)


def _left(wanted: Iterable[list[str]], journal: Journal) -> list[list[str]]:
    known = {row["fault"] for row in journal.rows()}
    left = [[name for name in group if name not in known] for group in wanted]
    return [group for group in left if group]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m suites.meta.teeth", description=__doc__)
    parser.add_argument("faults", nargs="*", help="names of faults; all, if none is named")
    parser.add_argument("--area", choices=AREAS, action="append", help="only this area's; may be given several times")
    parser.add_argument("--device", choices=sorted(MARKS), default="", help="on this device only")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="", help="in this dtype only")
    parser.add_argument("--workers", type=int, default=1, help="processes; 0 asks in this one")
    parser.add_argument("--shard", default="1/1", help="a part of all, such as 1/2; parts may share a folder")
    parser.add_argument("--out", type=Path, default=teeth.FOLDERS[0], help="folder of teeth.jsonl and teeth.md")
    chosen = parser.parse_args(arguments)
    every = FAULTS | (EQUIVALENT if chosen.device != "cuda" else {})
    if unknown := set(chosen.faults) - set(every):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}")
    asked = [every[n] for n in chosen.faults or every if not chosen.area or every[n].area in chosen.area]
    wanted, start, threads = shard(groups(asked), chosen.shard), time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(1)  # a fork does not inherit the threads that this process has started
    journal = Journal(chosen.out / "teeth.jsonl", common(chosen.device, chosen.dtype))
    for alone in (False, True):
        part = [group for group in wanted if (every[group[0]].checks[0] == TIMED) is alone]
        workers = min(chosen.workers, 1) if alone else chosen.workers
        conduct(part, journal, workers, max(1, threads // max(1, workers)))
    torch.set_num_threads(threads)
    names = {name for group in wanted for name in group}
    rows = sorted((r for r in journal.rows() if r["fault"] in names), key=lambda r: list(every).index(r["fault"]))
    if not rows:
        print(f"no fault was asked: part {chosen.shard} of {len(asked)} holds none")
        return 5
    write_text(chosen.out / "teeth.md", teeth.markdown(rows))
    for missed in teeth.misses(rows):
        print("missed:", *missed, sep="  ")
    print(f"{teeth.sentence(rows)}; {time.monotonic() - start:.0f} s: {chosen.out / 'teeth.md'}")
    return int(bool(teeth.misses(rows))) if teeth.rates(rows) else 5


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
