"""Wiring: options, hooks and subjects in; records, verdict and exit code out. Nothing is judged here."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest

from fixtures import environment, heap, hookspecs, policy, waivers
from fixtures.bad_input import BadInput
from fixtures.bench import Bench, assemble
from fixtures.judgement import Judge
from fixtures.slacks import ledger
from reports import certificate, compare, promises, summary, teeth, verdict, wording
from reports.record import Record, worse
from reports.run import Run, begin, checksum
from reports.upgrade import Certificate, Side
from reports.verdict import STOPPED
from suites import checks, ending, refusals, workers
from suites.selection import Selection, select
from suites.writer import Writer

BENCH, RUN, SELECTION = pytest.StashKey[Bench](), pytest.StashKey[Run](), pytest.StashKey[Selection]()
FREEZES = pytest.StashKey[bool]()
REQUIRED, CERTIFICATE = pytest.StashKey[set[str]](), pytest.StashKey[Certificate]()
PENDING, WARNED = pytest.StashKey[Record](), pytest.StashKey[list[warnings.WarningMessage]]()


def _path(given: str) -> Path:
    """A path as a user writes it: no shell puts a home folder for the `~` of `--report=~/gate`."""
    return Path(os.path.expanduser(given))  # noqa: PTH111 - pathlib's raises where nobody of that name has a home


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("spiritlevel", "what is under test, and where the report goes").addoption
    add("--deployment", type=_path, metavar="FILE", help="--deployment=deployment.toml: identity, claims, waivers")
    add("--model", default="", metavar="PATH_OR_ID", help="--model=… a folder of safetensors, a GGUF file, a hub id")
    add("--trust-remote-code", action="store_true", help="run the code that a checkpoint brings")
    add("--allow-pickle", action="store_true", help="load pickled weights")
    add("--seed", type=int, default=0, help="seed of every input and every seeded model (0)")
    add("--shape", type=_path, metavar="CONFIG", help="audit claims on random weights of this config.json's shape")
    tiers = "smoke asks a few questions of everything in a minute, full adds architectures and lengths"
    add("--tier", choices=["smoke", "standard", "full"], default="standard", help=tiers)
    add("--report", type=_path, metavar="FOLDER", help="where the run goes (reports/runs/<time>-<host>)")
    add("--resume", type=_path, metavar="RUN", help="beside the options of before: finish a run that was stopped")
    add("--allow-partial", action="store_true", help="exit 0 although something was not verified")
    add("--checkpoints", type=_path, metavar="FOLDER", help="other reference models than fixtures/checkpoints")
    add("--policy", type=_path, metavar="FILE", help="sets of promises (fixtures/policy.toml)")
    add("--require", metavar="SETS", help="owe these sets or areas, by commas, whatever was selected: --require=core")
    add("--baseline", type=_path, metavar="RUN", help="--baseline=RUN: certify this run against that one, from before")
    add("--across-models", action="store_true", help="compare with a baseline although its model is another one")


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    option, now = config.option, datetime.datetime.now()
    config.addinivalue_line("markers", "gpu: a check that runs on CUDA")
    config.addinivalue_line("markers", "applies(**declared): only subjects that declare one of these values")
    config.addinivalue_line("markers", "takes_minutes: not asked by --tier=smoke")
    config.addinivalue_line("markers", "teeth: a fault is injected, and its checks must reject it")
    config.addinivalue_line("markers", "capability(name): only where deployment.toml claims it")
    config.addinivalue_line("markers", "optional(subjects): owed only where one of them is here")
    if option.markexpr == "teeth" and config.args_source is config.ArgsSource.TESTPATHS:
        config.args[:] = ["suites/meta/test_teeth.py"]
    if not heap.is_frozen():  # by a run that this one is inside of
        config.stash[FREEZES] = True
        config.add_cleanup(heap.unfreeze)  # added before pytest's own, it comes after them
    refusals.surroundings()
    workers.prepare(config)
    if told := getattr(config, "workerinput", {}):
        environment.tell(pickle.loads(told["environment"]))
    try:
        known = pickle.loads(told["release"]) if told else None
        with warnings.catch_warnings(action="ignore"):  # libraries warn of each other where they are imported
            bench = config.stash[BENCH] = assemble(config.pluginmanager, option, now.date(), known)
        source = option.policy or policy.DEFAULT
        sets = policy.read(source)
        asked = option.require.split(",") if option.require else ()
        required = config.stash[REQUIRED] = policy.owed(source, sets, asked, promises.find())
    except (BadInput, OSError) as error:
        raise pytest.UsageError(str(error)) from error
    here, arguments = bench.environment.as_dict(), config.invocation_params.args
    facts = bench.facts() | {"tier": option.tier, "programs": checksum(), "policy": sets, "required": sorted(required)}
    kept = {"deployment.toml": option.deployment, "policy.toml": option.policy}
    try:
        config.stash[RUN] = begin(option.report, here, facts, arguments, now, kept, None if told else option.resume)
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"--resume {option.resume}: {error}") from error
    config.pluginmanager.register(bench, "spiritlevel-bench")
    register = config.pluginmanager.register
    register(workers.Worker(bench, told) if told else Writer(config.stash[RUN]))
    if workers.wanted(config):
        register(workers.Controller(config, bench, config.stash[RUN], _dead))


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    if said := promises.parse(getattr(getattr(item, "function", None), "__doc__", None)):
        item.stash[checks.PROMISE] = said


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Any:
    bench, option, collected = config.stash[BENCH], config.option, checks.of(items)
    refusals.slips(items)
    refusals.crowded(config, collected)
    yield
    if not collected and not option.require:
        return  # no conformance run
    known, kept = promises.find(), checks.of(items)
    refusals.misspelt(bench, known, collected)
    relied_on, required = bench.deployment.relied_on, config.stash[REQUIRED]
    found = config.stash[SELECTION] = select(config, known, collected, bench.applicable, kept, relied_on, required)
    run = config.stash[RUN]
    run.facts |= {"scope": found.scope, "owed": sorted(found.owed), "checks": found.count, "selection": found.asked}
    if not workers.is_worker(config):
        _refuse_a_baseline(config)
    if kept and not option.collectonly and not workers.is_worker(config):
        try:
            run.open()
        except OSError as error:
            raise pytest.UsageError(f"the report cannot be written: {error}") from error
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error
    judged = getattr(config, "workerinput", {}).get("judged", run.judged)
    items[:] = [item for item in items if item.nodeid not in judged]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Thousands of parameters outlive every check; those of a run within a run are to go when it ends."""
    if not workers.wanted(session.config):
        heap.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """pytest collects garbage many times over before it ends; what is alive now goes with the process."""
    if FREEZES in config.stash:
        heap.freeze()


def _refuse_a_baseline(config: pytest.Config) -> None:
    """Before anything is run: a baseline that this run could not be compared with at its end."""
    option = config.option
    if option.baseline and not option.collectonly:
        here = Side("this run", (), config.stash[RUN].facts)
        try:
            why = compare.refusal(compare.load(option.baseline), here, across_models=option.across_models)
        except compare.NoRun as error:
            why = str(error)
        if why:
            raise pytest.UsageError(f"--baseline: {why}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """A check is over when its judge has concluded; one that judged nothing is vacuous."""
    result = yield
    if checks.PROMISE in item.stash:
        checks.judge(item).conclude()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    record = None
    if checks.PROMISE in item.stash and (call.when == "call" or call.excinfo is not None):
        record = item.stash[PENDING] = worse(item.stash.get(PENDING, None), _record(item, call))
        if record.outcome != "failed":
            call.excinfo = None  # pytest would format its traceback, which nobody is shown
    report = yield
    if record is not None:
        ending.show(report, item, record.outcome, record.message, crash=record.crash)
    if call.when == "teardown" and PENDING in item.stash:  # all is known; whoever writes it may be another process
        report.record = dataclasses.replace(item.stash[PENDING], warnings=_warnings(item)).line()
    if workers.is_worker(item.config):
        report.keywords = {}  # of no use to who reads it, and more than all else that is sent of most reports
    return report


def _warnings(item: pytest.Item) -> tuple[str, ...]:
    said = [f"{w.category.__name__}: {summary.first_line(str(w.message))}" for w in item.stash[WARNED]]
    return tuple(dict.fromkeys(said))


def _record(item: pytest.Item, call: pytest.CallInfo[None]) -> Record:
    bench, judge = item.config.stash[BENCH], checks.judge(item)
    end = ending.of(call.excinfo.value if call.excinfo else None, judge, checks.about(item), bench)
    if end.lost:
        bench.lost = f"the GPU cannot be used since {item.nodeid}: {summary.first_line(end.lost)}"
        bench.broken = end.outcome == "failed"
    return _told(item, end, judge, call.duration)


def _dead(item: pytest.Item, why: str, seconds: float) -> Record:
    """What is known of a check whose process ended."""
    return _told(item, ending.dead(why, checks.about(item)), checks.judge(item), seconds)


def _told(item: pytest.Item, end: ending.Ending, judge: Judge, seconds: float) -> Record:
    bench, option, about = item.config.stash[BENCH], item.config.option, checks.about(item)
    rerun = wording.rerun(item.nodeid, bench.seed, option)
    return Record(
        **about,
        outcome=end.outcome,
        judgements=tuple(judge.as_dicts()),
        evidence=judge.evidence,
        message=wording.message(about, end.outcome, end.why, rerun),
        crash=end.crash,
        waiver=end.waiver,
        seconds=round(seconds, 3),
        seed=bench.seed,
        rerun=rerun,
        environment=item.config.stash[RUN].environment,
    )


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Warnings are heard here, for the record, and passed on to pytest.

    One that is an error to pytest's filters has raised where it was warned, unless that was under filters of its own.
    """
    with warnings.catch_warnings(record=True) as heard:
        item.stash[WARNED] = heard
        result = yield
    for w in heard:
        with contextlib.suppress(w.category):
            warnings.warn_explicit(w.message, None, w.filename, w.lineno, source=w.source)
    return result


def pytest_report_teststatus(report: Any) -> Any:
    return ending.status(report)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    stash, option = session.config.stash, session.config.option
    if SELECTION not in stash or option.collectonly or exitstatus in (3, 4) or workers.is_worker(session.config):
        return
    bench, run, selection = stash[BENCH], stash[RUN], stash[SELECTION]
    run.notes += [*bench.notes(), *selection.notes()]
    judged = {record.promise for record in run.records}
    run.facts |= {
        "not_here": dict(bench.not_here),
        "teeth": teeth.seen(run.environment, run.facts["programs"]),
        "slacks": {promise: slacks for promise, slacks in ledger().items() if promise in judged},
    }
    failures = session.testsfailed + sum(r.outcome == "failed" for r in run.former or ())
    missed = selection.missed([r.outcome for r in run.records], failures)
    if STOPPED in missed:
        run.notes.append(f"to finish this run, add to its options: --resume={run.folder}")
    terms: dict[str, Any] = {
        "owed": sorted(selection.owed),
        "scope": selection.scope,
        "stale": waivers.stale(bench.deployment.waivers, bench.environment.versions, run.records),
        "incomplete": missed,
        "nothing": bench.explain() if "gpu" in option.markexpr else "",
        "allow_partial": option.allow_partial,
    }
    found = verdict.judge(run.records, **terms)
    try:
        run.close(found, terms)
    except OSError as error:
        run.notes.append(f"the report cannot be written: {error}")
        session.exitstatus = session.exitstatus or 3
        return
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = found.exit_code
    if option.baseline and run.records:
        certified = stash[CERTIFICATE] = compare.of(option.baseline, run.folder, across_models=option.across_models)
        certificate.write(run.folder, certified)
        session.exitstatus = session.exitstatus or certified.exit_code


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    run = config.stash.get(RUN, None)
    if run and run.verdict:
        terminalreporter.section("spiritlevel")
        terminalreporter.write_line(summary.terminal(run.records, run.verdict, run.notes))
        if run.records:
            terminalreporter.write_line(f"report: {run.report()}")
    if CERTIFICATE in config.stash:
        terminalreporter.section("upgrade certificate")
        terminalreporter.write_line(certificate.terminal(config.stash[CERTIFICATE]))


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Bench:
    """The run's state, for the fixtures of suites/conftest.py."""
    return request.config.stash[BENCH]
