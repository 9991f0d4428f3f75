"""A run in worker processes: what a check does to its process ends that check, and not the run.

pytest-xdist starts the workers, hands out the checks and replaces a worker that died; pytest-timeout says how long a
check may take. The controller collects too, so that it knows of every check what a record must say, and it alone
writes. Several GPUs share the work: each worker sees one.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures import folders
from fixtures.bench import Bench
from reports.record import Record
from reports.run import Run
from suites import checks

# After so many dead workers a run is given up: a stack on which every check kills its process shows no more.
RESTARTS = 32

# Areas whose checks measure time, which a neighbour would spoil: they have a session of their own, and are owed only
# where they are asked for.
ALONE = frozenset({"throughput"})

# Options whose value may be a path that exists.
PATHS = frozenset(
    f"--{name}" for name in ("report", "resume", "deployment", "model", "checkpoints", "policy", "baseline", "shape")
)

# How much of a dead worker's last words a record keeps.
LAST_WORDS = 4000


def wanted(config: pytest.Config) -> bool:
    """Whether workers were asked for, by the process that would start them."""
    many = getattr(config.option, "numprocesses", None) or getattr(config.option, "tx", None)
    return bool(many) and not config.option.collectonly


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def involved(config: pytest.Config) -> bool:
    """Whether checks run in workers, asked of either side."""
    return wanted(config) or is_worker(config)


def prepare(config: pytest.Config) -> None:
    """Before xdist and pytest-timeout read their options, and before anything asks how many threads there are."""
    if not wanted(config):
        return
    if "OMP_NUM_THREADS" not in os.environ:
        # Workers share the cores; each with threads on all of them, two took longer than one.
        threads = max(1, torch.get_num_threads() // len(config.option.tx))
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    if config.option.maxworkerrestart is None:
        config.option.maxworkerrestart = str(RESTARTS)
    if not any(arg.startswith("--dist") for arg in config.invocation_params.args):
        # Neighbours ask the same models: a worker keeps to its part of the run until another has nothing left.
        config.option.dist = "worksteal"
    params = config.invocation_params
    config.invocation_params = dataclasses.replace(params, args=tuple(joined(params.args)))


def joined(args: Iterable[str]) -> list[str]:
    """A worker's arguments, each path beside its option: `--report=FOLDER`.

    pytest takes a path that exists for one of the checks' and looks for its configuration from there: a folder of
    records exists when a worker takes a dead one's place, which then knew no option of ours.
    """
    beside: list[str] = []
    for arg in map(str, args):
        if beside and beside[-1] in PATHS and not arg.startswith("-"):
            beside[-1] += f"={arg}"
        else:
            beside.append(arg)
    return beside


@dataclass(eq=False)
class Controller:
    """Starts no check itself. `dead(item, why, seconds)` is what a record says of a check whose process ended."""

    config: pytest.Config
    bench: Bench
    run: Run
    dead: Callable[[pytest.Item, str, float], Record]
    items: dict[str, pytest.Item] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    words: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self, session: pytest.Session) -> Iterator[None]:
        self.items = {item.nodeid: item for item in session.perform_collect()}
        return (yield)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self, specs: list[Any]) -> None:
        """A worker sees one GPU, the next worker the next; a worker that takes a dead one's place sees the same."""
        shared = shares(len(specs), self.bench.environment.gpus, os.environ)
        self.bench.exercised = len({str(visible) for visible in shared})
        for spec, visible in zip(specs, shared, strict=True):
            spec.env |= visible

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        if ids != list(self.items):
            pytest.exit(f"worker {node.gateway.id} does not see the checks that this process sees", returncode=2)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["environment"] = pickle.dumps(self.bench.environment)
        node.workerinput["release"] = pickle.dumps(self.bench.served.release)
        node.workerinput["judged"] = sorted(self.run.judged)
        node.workerinput["last_words"] = str(self._last_words(node))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.started[nodeid] = time.monotonic()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.bench.lost = self.bench.lost or getattr(node, "workeroutput", {}).get("lost", "")
        folders.remove_after(node.workerinput["testrunuid"], node.workerinput["workerid"])

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: Any) -> None:
        """The check that a dead worker was at failed, unless all was already known of it."""
        report.when = "teardown"
        if crashitem not in self.items or any(record.check == crashitem for record in self.run.records):
            report.outcome = "passed"
            return
        item, limit = self.items[crashitem], getattr(self.config.option, "timeout", None)
        seconds = time.monotonic() - self.started.get(crashitem, time.monotonic())
        why = "the process ended while this check ran"
        if limit and seconds >= limit:
            why = f"the process was ended at the check's time limit of {limit:g} s"
        words = self._last_words(report.node)
        said = words.read_text(encoding="utf-8", errors="replace").strip() if words.exists() else ""
        report.when, report.longrepr = "call", f"{why}\n{said[:LAST_WORDS]}".strip()
        if checks.of([item]):  # a test that holds no promise has no record
            record = self.dead(item, report.longrepr, seconds)
            report.longrepr, report.record = record.message, record.line()

    def pytest_unconfigure(self) -> None:
        self.words.cleanup()

    def _last_words(self, node: Any) -> Path:
        return Path(self.words.name) / f"{node.gateway.id}.txt"


def shares(workers: int, gpus: tuple[Any, ...], environ: Mapping[str, str]) -> list[dict[str, str]]:
    """What each worker is to find in its environment: one GPU, where there are several of the first one's kind."""
    named = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    visible = named or [str(index) for index in range(len(gpus))]
    alike = [name for name, gpu in zip(visible, gpus, strict=False) if gpu.name == gpus[0].name]
    if len(gpus) < 2:
        return [{}] * workers
    return [{"CUDA_VISIBLE_DEVICES": alike[worker % len(alike)]} for worker in range(workers)]


@dataclass(eq=False)
class Worker:
    """Runs what it is handed. It is replaced when it dies, and ends itself where a check broke its GPU's context."""

    bench: Bench
    told: Mapping[str, Any]

    def pytest_sessionstart(self) -> None:
        self.last_words = Path(self.told["last_words"]).open("w", encoding="utf-8")  # noqa: SIM115 - until the end
        faulthandler.enable(self.last_words, all_threads=False)

    @pytest.hookimpl(optionalhook=True)
    def pytest_timeout_set_timer(self, settings: Any) -> bool:
        """A check that hangs where no Python runs, or holds the interpreter, hears of no other limit."""
        faulthandler.dump_traceback_later(settings.timeout, exit=True, file=self.last_words)
        return True

    @pytest.hookimpl(optionalhook=True)
    def pytest_timeout_cancel_timer(self) -> bool:
        faulthandler.cancel_dump_traceback_later()
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        before = self.bench.broken
        result = yield
        if self.bench.broken and not before:
            os._exit(1)  # a worker that takes its place has a context of its own
        return result

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        session.config.workeroutput["lost"] = self.bench.lost  # type: ignore[attr-defined]
