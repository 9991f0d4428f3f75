"""Wiring: options, hooks and subjects in; records, verdict and exit code out. Nothing is judged here."""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import platform
import shlex
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fixtures import attention, environment, flash, flex, hookspecs, kv_caches, positions, quantizers
from fixtures.deployment import BadInput, Deployment, read
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
    selected: int = 0
    applicable: list[pytest.Item] = field(default_factory=list)
    not_here: Counter[str] = field(default_factory=Counter)
    incomplete: list[str] = field(default_factory=list)
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
    group.addoption(
        "--tier", choices=["standard", "full"], default="standard", help="how deep: full adds architectures and lengths"
    )
    group.addoption("--report", type=Path, metavar="FOLDER", help="where the run goes (reports/runs/<time>-<host>)")
    group.addoption("--allow-partial", action="store_true", help="exit 0 although something was not verified")
    group.addoption("--require", choices=["core"], help="owe every promise, whatever was selected")


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: a check that runs on CUDA")
    config.addinivalue_line("markers", "applies(**declared): only subjects that declare one of these values")
    config.addinivalue_line("markers", "capability(name): only where deployment.toml claims it")
    if getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
        raise pytest.UsageError("a conformance run is one process: run it without -n")
    if misfits := environment.out_of_range(ROOT / "pyproject.toml"):
        raise pytest.UsageError("; ".join(misfits))
    _quiet()
    try:
        config.stash[BENCH] = _bench(config)
        config.pluginmanager.register(config.stash[BENCH], "spiritlevel-bench")
    except BadInput as error:
        raise pytest.UsageError(str(error)) from error


def _bench(config: pytest.Config) -> Bench:
    option, now = config.option, datetime.datetime.now()
    deployment = read(option.deployment, now.date()) if option.deployment else Deployment()
    here = environment.probe()
    served = _served(option.model or deployment.model, option)
    registry = Registry()
    for plugin in (attention, flex, flash, kv_caches, positions, quantizers, Workshop(option.seed), served):
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
    """What is owed is decided by the paths that were asked for, unless checks are asked for by name."""
    bench, option = config.stash[BENCH], config.option
    everything = [item for item in items if PROMISE in item.stash]
    _refuse_slips(items)
    yield
    checks = [item for item in items if PROMISE in item.stash]
    if not everything and not option.require:
        return  # no conformance run
    known = promises.find(ROOT / "suites")
    asked = [(config.invocation_params.dir / arg.split("::")[0]).resolve() for arg in config.args]
    owed = {p.id for p in known if any((ROOT / p.file).is_relative_to(path) for path in asked)}
    owed |= {item.stash[PROMISE][0] for item in everything}
    by_name = option.keyword or option.markexpr not in ("", "gpu") or any("::" in arg for arg in config.args)
    wanted = [item for item in bench.applicable or everything if item.get_closest_marker("gpu") or not option.markexpr]
    left_out = 0 if by_name and not option.require else len(set(wanted) - set(checks))
    bench.incomplete += [f"{left_out} checks deselected"] * bool(left_out)
    bench.owed = {p.id for p in known} if option.require else _promised(checks) if by_name else owed
    bench.scope = _scope(config, {p.area for p in known}, {_area(item) for item in everything})
    bench.selected = len(checks)
    _refuse_misspelt(bench, known, everything)
    if checks and not option.collectonly:
        try:
            bench.run.open()
        except OSError as error:
            raise pytest.UsageError(f"the report cannot be written: {error}") from error


def _promised(items: list[pytest.Item]) -> set[str]:
    return {item.stash[PROMISE][0] for item in items}


def _scope(config: pytest.Config, known: set[str], areas: set[str]) -> str:
    """What the verdict is about, in words."""
    told = ["all areas" if known <= areas else f"{', '.join(sorted(areas)) or 'nothing'} only"]
    told += [
        f"-{letter} {said!r}" for letter, said in (("k", config.option.keyword), ("m", config.option.markexpr)) if said
    ]
    return ", ".join(told)


def _refuse_slips(items: list[pytest.Item]) -> None:
    """A check whose docstring is not a promise would run and be counted nowhere."""
    meta = ROOT / "suites" / "meta"
    for item in items:
        in_area = item.path.is_relative_to(ROOT / "suites") and not item.path.is_relative_to(meta)
        if PROMISE not in item.stash and (in_area or "judge" in getattr(item, "fixturenames", ())):
            raise pytest.UsageError(f"{item.nodeid}: its docstring must begin with a promise: 'AREA-1: … MUST …'")


def _refuse_misspelt(bench: Bench, known: list[promises.Promise], items: list[pytest.Item]) -> None:
    """A waiver that names nothing excuses nothing, and would never be noticed."""
    ids = {p.id for p in known} | _promised(items)
    functions = {f"{p.file}::{p.function}" for p in known} | {item.nodeid.split("[")[0] for item in items}
    collected = {item.nodeid for item in items}
    subjects = {name for kind in bench.registry.subjects.values() for name in kind} | set(attention.SDPA) | {"served"}
    for waiver in bench.deployment.waivers:
        function = waiver.check.split("[")[0]
        if waiver.promise and waiver.promise not in ids:
            raise pytest.UsageError(f"{waiver}: there is no promise {waiver.promise}")
        if waiver.check and function not in functions:
            raise pytest.UsageError(f"{waiver}: there is no check {function}")
        here = {c for c in collected if c.split("[")[0] == function}
        elsewhere = waiver.check.endswith("-cuda]") or waiver.device not in ("*", *bench.environment.devices)
        if waiver.check and here and waiver.check not in here and not elsewhere:
            raise pytest.UsageError(f"{waiver}: {function} has no such parameters; it has {sorted(here)[0]}")
        if not elsewhere and not any(fnmatch.fnmatchcase(name, waiver.subject) for name in subjects):
            raise pytest.UsageError(f"{waiver}: there is no subject {waiver.subject}; there are {sorted(subjects)}")


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
    record = max(item.stash.get(PENDING, record), record, key=_severity)
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


def _severity(record: Record) -> tuple[int, bool]:
    """A later phase, or a second attempt, cannot make a check look better than it was."""
    return ("passed", "waived", "unverified", "inconclusive", "failed").index(record.outcome), record.crash


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
    told = [j.sentence() for j in judge.judgements if j.outcome == "failed"]
    if isinstance(error, Rejected):
        return "failed", str(error)
    if told and (error is None or isinstance(error, (Unverified, Inconclusive, pytest.skip.Exception))):
        return "failed", "\n".join([*told, str(error or "")])
    if isinstance(error, (Unverified, pytest.skip.Exception)):
        return "unverified", str(error)
    if isinstance(error, Inconclusive):
        return "inconclusive", str(error)
    if error is None:
        return "passed", ""
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
    bench.run.notes += [note for note in (bench.lost, *_notes(bench)) if note]
    bench.run.facts["not_here"] = dict(bench.not_here)
    if len(bench.run.records) < bench.selected:
        bench.incomplete.append("stopped before its end")
    if session.testsfailed > sum(r.outcome == "failed" for r in bench.run.records):
        bench.incomplete.append("errors outside the checks")
    bench.verdict = verdict.judge(
        bench.run.records,
        owed=bench.owed,
        scope=bench.scope,
        stale=_stale(bench),
        incomplete=bench.incomplete,
        nothing=bench.explain() if "gpu" in session.config.option.markexpr else "",
        allow_partial=session.config.option.allow_partial,
    )
    if bench.run.records:
        bench.run.close(bench.verdict, time.monotonic() - bench.started)
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = bench.verdict.exit_code


def _stale(bench: Bench) -> list[str]:
    """Waivers in range of which every check ran and passed."""
    found = []
    for waiver in bench.deployment.waivers:
        about = [r for r in bench.run.records if waiver.names(r.promise, r.check, r.subject, r.device)]
        if about and waiver.in_range(bench.environment.versions) and all(r.outcome == "passed" for r in about):
            found.append(str(waiver))
    return found


def _notes(bench: Bench) -> list[str]:
    """What a reader must know of what was not looked at."""
    count, told = len(bench.environment.gpus), [bench.explain()]
    answering = bench.environment.kernels.get("cuda", {})
    if count > 1:
        told.append(f"{count} GPUs are present, the first was exercised: choose with CUDA_VISIBLE_DEVICES")
    for name, (backend, takes) in attention.SDPA.items():
        if count and "cuda" in takes.get("devices", ()) and backend not in answering:
            told.append(f"{name} does not answer on this GPU")
    return told


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    bench = config.stash.get(BENCH, None)
    if bench is None or bench.verdict is None:
        return
    terminalreporter.section("spiritlevel")
    terminalreporter.write_line(summary.terminal(bench.run.records, bench.verdict, bench.run.notes))
    if bench.run.records:
        folder = bench.run.folder.absolute()
        here = folder.is_relative_to(Path.cwd())
        shown = str(folder.relative_to(Path.cwd())) if here else _homeless(str(folder))
        terminalreporter.write_line(f"report: {shown}/report.md")


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Bench:
    """The run's state, for the fixtures of suites/conftest.py."""
    return request.config.stash[BENCH]
