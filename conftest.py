"""Wiring: options, hooks and subjects in; records, verdict and exit code out. Nothing is judged here."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import shlex
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fixtures import attention, environment, hookspecs, kv_caches, positions, quantizers
from fixtures.deployment import BadInput, Deployment, Waiver, read
from fixtures.judgement import Inconclusive, Judge, Rejected, Unverified
from fixtures.models import Workshop
from fixtures.registry import KINDS, Registry
from fixtures.served import Served, locate
from fixtures.shelf import Shelf
from reports import promises, summary, verdict
from reports.record import Record
from reports.run import Run, default_folder

ROOT = Path(__file__).parent
LETTERS = {"waived": "w", "inconclusive": "i", "unverified": "u"}


@dataclass
class Bench:
    """One run's state: what is deployed, on what, who is under test, what came out."""

    deployment: Deployment
    environment: environment.Environment
    registry: Registry
    served: Served
    seed: int
    run: Run
    shelf: Shelf = field(default_factory=Shelf)
    promises: dict[str, promises.Promise] = field(default_factory=dict)
    owed: set[str] = field(default_factory=set)
    scope: str = ""
    not_here: Counter[str] = field(default_factory=Counter)
    lost: str = ""
    started: float = field(default_factory=time.monotonic)
    verdict: verdict.Verdict | None = None

    def explain(self) -> str:
        return f"no GPU is usable: {self.environment.gpu_reason}" if self.environment.gpu_reason else ""


BENCH = pytest.StashKey[Bench]()
PROMISE = pytest.StashKey[tuple[str, str]]()
PENDING = pytest.StashKey[Record]()
WARNED: defaultdict[str, list[str]] = defaultdict(list)  # by node id; pytest hands that hook no config


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("spiritlevel", "what is under test, and where the report goes")
    group.addoption(
        "--deployment", type=Path, metavar="FILE", help="--deployment=deployment.toml: identity, claims, waivers"
    )
    group.addoption(
        "--model", default="", metavar="PATH_OR_ID", help="--model=… a folder of safetensors, a GGUF file, a hub id"
    )
    group.addoption("--trust-remote-code", action="store_true", help="run the code that a checkpoint brings")
    group.addoption("--allow-pickle", action="store_true", help="load pickled weights")
    group.addoption("--seed", type=int, default=0, help="seed of every input and every seeded model (0)")
    group.addoption("--report", type=Path, metavar="FOLDER", help="where the run goes (reports/runs/<time>-<host>)")
    group.addoption("--allow-partial", action="store_true", help="exit 0 although something was not verified")
    group.addoption("--require", choices=["core"], help="owe every promise, whatever was selected")


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: a check that runs on CUDA")
    config.addinivalue_line("markers", "applies(**declared): only subjects that declare one of these values")
    if getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
        raise pytest.UsageError("a conformance run is one process: run it without -n")
    if misfits := environment.out_of_range(ROOT / "pyproject.toml"):
        raise pytest.UsageError("; ".join(misfits))
    _quiet()
    try:
        config.stash[BENCH] = _bench(config)
    except BadInput as error:
        raise pytest.UsageError(str(error)) from error


def _bench(config: pytest.Config) -> Bench:
    option, now = config.option, datetime.datetime.now()
    deployment = read(option.deployment, now.date()) if option.deployment else Deployment()
    here = environment.probe()
    served = _served(option.model or deployment.model, option)
    registry = Registry()
    for plugin in (attention, kv_caches, positions, quantizers, Workshop(option.seed), served):
        config.pluginmanager.register(plugin)
    for hook in KINDS:
        getattr(config.hook, hook)(register=registry.registrar(hook))
    facts = {
        "deployment": deployment.name,
        "model": f"{served.release.name}, sha256 {served.release.sha256}" if served.release else "none",
        "started": f"{now.astimezone():%Y-%m-%d %H:%M:%S %z}",
        "command": _homeless(shlex.join(["pytest", *config.invocation_params.args])),
        "seed": option.seed,
    }
    folder = option.report or default_folder(ROOT / "reports" / "runs", platform.node(), now)
    return Bench(deployment, here, registry, served, option.seed, Run(folder, here.as_dict(), facts))


def _served(model: str, option: Any) -> Served:
    try:
        return Served(locate(model, trust_remote_code=option.trust_remote_code, allow_pickle=option.allow_pickle))
    except Unverified as reason:
        return Served(None, str(reason))


def _quiet() -> None:
    """Progress bars and advice of the libraries would bury the verdict."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _homeless(text: str) -> str:
    return text.replace(str(Path.home()), "~")


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    said = promises.parse(getattr(getattr(item, "function", None), "__doc__", None))
    if said:
        item.stash[PROMISE] = said


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> Any:
    """What is owed is decided before -k and -m take anything away, unless they ask for something by name."""
    bench, option = config.stash[BENCH], config.option
    everything = [item for item in items if PROMISE in item.stash]
    in_scope = {item.stash[PROMISE][0] for item in everything}
    areas = {_area(item) for item in everything}
    yield
    checks = [item for item in items if PROMISE in item.stash]
    if not everything:
        return
    known = promises.find(ROOT / "suites")
    by_name = option.keyword or option.markexpr not in ("", "gpu") or any("::" in a for a in config.args)
    bench.owed = {item.stash[PROMISE][0] for item in checks} if by_name else in_scope
    if option.require == "core":
        bench.owed |= {p.id for p in known}
    narrowed = [f"-k {option.keyword!r}"] * bool(option.keyword) + [f"-m {option.markexpr!r}"] * bool(option.markexpr)
    whole = {p.area for p in known} <= areas
    bench.scope = ", ".join(["all areas" if whole else f"{', '.join(sorted(areas))} only", *narrowed])
    _refuse_misspelt(bench.deployment.waivers, known, everything)
    if checks and not option.collectonly:
        try:
            bench.run.open()
        except OSError as error:
            raise pytest.UsageError(f"the report cannot be written: {error}") from error


def _refuse_misspelt(waivers: tuple[Waiver, ...], known: list[promises.Promise], items: list[pytest.Item]) -> None:
    ids = {p.id for p in known} | {item.stash[PROMISE][0] for item in items}
    functions = {f"{p.file}::{p.function}" for p in known} | {item.nodeid.split("[")[0] for item in items}
    collected = {item.nodeid for item in items}
    for waiver in waivers:
        function = waiver.check.split("[")[0]
        if waiver.promise and waiver.promise not in ids:
            raise pytest.UsageError(f"{waiver}: there is no promise {waiver.promise}")
        if waiver.check and function not in functions:
            raise pytest.UsageError(f"{waiver}: there is no check {function}")
        here = {c for c in collected if c.split("[")[0] == function}
        if waiver.check and here and waiver.check not in here and not waiver.check.endswith("-cuda]"):
            raise pytest.UsageError(f"{waiver}: {function} has no such parameters; it has {sorted(here)[0]}")


def _area(item: pytest.Item) -> str:
    return Path(item.path).parent.name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """A check is over when its judge has concluded; one that judged nothing is vacuous."""
    result = yield
    if PROMISE in item.stash:
        judge = getattr(item, "funcargs", {}).get("judge") or Judge(item.stash[PROMISE][0])
        judge.conclude()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if PROMISE not in item.stash or (call.when != "call" and call.excinfo is None):
        return report
    record = _record(item, call)
    item.stash[PENDING] = record
    report.sections = [s for s in report.sections if record.outcome == "failed"]
    if record.outcome in LETTERS:
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, record.message)
        report.spiritlevel = record.outcome
    elif record.outcome == "failed":
        report.outcome = "failed"
        if not record.crash:
            report.longrepr = record.message
    return report


def _record(item: pytest.Item, call: pytest.CallInfo[None]) -> Record:
    bench = item.config.stash[BENCH]
    promise, statement = item.stash[PROMISE]
    judge: Judge = getattr(item, "funcargs", {}).get("judge") or Judge(promise)
    params = getattr(getattr(item, "callspec", None), "params", {})
    outcome, why = _outcome(call.excinfo.value if call.excinfo else None, judge)
    device = getattr(params.get("device"), "name", params.get("device", "cpu"))
    crash = outcome == "crashed"
    if crash and device == "cuda" and not environment.context_is_alive("cuda"):
        bench.lost = f"the GPU cannot be used since {item.nodeid}: {summary.first_line(why)}"
        if not environment.device_is_alive("cuda"):
            outcome, crash = "unverified", False
            why = f"the GPU disappeared during the run: {why}"
    names = {name: str(getattr(value, "name", value)).removeprefix("torch.") for name, value in params.items()}
    subject = ", ".join(str(v.name) for v in params.values() if hasattr(v, "refuses"))
    rerun = f"pytest {shlex.quote(item.nodeid)} --seed {bench.seed}"
    outcome = "failed" if crash else outcome
    waiver = _waiver(bench, promise, item.nodeid, subject, device) if outcome == "failed" and not crash else None
    if outcome in ("failed", "inconclusive"):
        why = f"{promise}: {statement}\n{why}\nsubject: {subject or 'none'} on {device}\nrerun: {rerun}"
    return Record(
        check=item.nodeid,
        promise=promise,
        statement=statement,
        area=_area(item),
        outcome="waived" if waiver else outcome,
        subject=subject,
        device=device,
        parameters=names,
        judgements=tuple(judge.as_dicts()),
        evidence=judge.evidence,
        message=_homeless(why),
        crash=crash,
        waiver=waiver,
        seconds=round(call.duration, 3),
        seed=bench.seed,
        rerun=rerun,
        environment=bench.run.environment,
    )


def _outcome(error: BaseException | None, judge: Judge) -> tuple[str, str]:
    """The outcome of a check that ended with this exception, and why. `crashed` becomes `failed` in the record."""
    if isinstance(error, (Unverified, pytest.skip.Exception)):
        return "unverified", str(error)
    if isinstance(error, Rejected):
        return "failed", str(error)
    if isinstance(error, Inconclusive):
        return "inconclusive", str(error)
    if error is None:
        return "passed", ""
    told = [j.sentence() for j in judge.judgements if j.outcome == "failed"]
    return "crashed", "\n".join([f"{type(error).__name__}: {error}", *told])


def _waiver(bench: Bench, promise: str, check: str, subject: str, device: str) -> dict[str, str] | None:
    for waiver in bench.deployment.waivers:
        if waiver.names(promise, check, subject, device) and waiver.in_range(bench.environment.versions):
            return {key: str(getattr(waiver, key)) for key in ("reason", "owner", "link", "expires")}
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """One record a check, written when its teardown and its warnings are in."""
    result = yield
    record, warned = item.stash.get(PENDING, None), WARNED.pop(item.nodeid, [])
    if record is not None:
        item.config.stash[BENCH].run.add(dataclasses.replace(record, warnings=tuple(dict.fromkeys(warned))))
    return result


def pytest_warning_recorded(warning_message: Any, nodeid: str) -> None:
    WARNED[nodeid].append(f"{warning_message.category.__name__}: {summary.first_line(str(warning_message.message))}")


def pytest_report_teststatus(report: Any) -> Any:
    word = getattr(report, "spiritlevel", None)
    return (word, LETTERS[word], word.upper()) if word else None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    bench = session.config.stash.get(BENCH, None)
    if bench is None or not bench.scope or session.config.option.collectonly or exitstatus in (3, 4):
        return
    interrupted = exitstatus == pytest.ExitCode.INTERRUPTED or bool(session.shouldstop or session.shouldfail)
    bench.verdict = verdict.judge(
        bench.run.records,
        owed=bench.owed,
        scope=bench.scope,
        stale=_stale(bench),
        interrupted=interrupted,
        nothing=bench.explain() if "gpu" in session.config.option.markexpr else "",
        allow_partial=session.config.option.allow_partial,
    )
    bench.run.notes += [note for note in (bench.lost, _unexercised(bench)) if note]
    if bench.run.records:
        bench.run.close(bench.verdict, time.monotonic() - bench.started)
    others_failed = session.testsfailed > sum(r.outcome == "failed" for r in bench.run.records)
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = bench.verdict.exit_code or int(others_failed)


def _stale(bench: Bench) -> list[str]:
    """Waivers in range of which every check ran and passed."""
    found = []
    for waiver in bench.deployment.waivers:
        about = [r for r in bench.run.records if waiver.names(r.promise, r.check, r.subject, r.device)]
        if about and waiver.in_range(bench.environment.versions) and all(r.outcome == "passed" for r in about):
            found.append(str(waiver))
    return found


def _unexercised(bench: Bench) -> str:
    count = len(bench.environment.gpus)
    return f"{count} GPUs are present, the first was exercised: choose with CUDA_VISIBLE_DEVICES" if count > 1 else ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    bench = config.stash.get(BENCH, None)
    if bench is None or bench.verdict is None:
        return
    terminalreporter.section("spiritlevel")
    terminalreporter.write_line(summary.terminal(bench.run.records, bench.verdict, bench.run.notes))
    if bench.run.records:
        terminalreporter.write_line(f"report: {_homeless(os.path.relpath(bench.run.folder))}/report.md")


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Bench:
    """The run's state, for the fixtures of suites/conftest.py."""
    return request.config.stash[BENCH]
