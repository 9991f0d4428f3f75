"""Wiring: options, hooks and subjects in; records, verdict and exit code out. Nothing is judged here."""

from __future__ import annotations

import dataclasses
import datetime
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from fixtures import hookspecs, waivers
from fixtures.bench import Bench, assemble
from fixtures.deployment import BadInput
from reports import certificate, compare, promises, summary, verdict, wording
from reports.record import Record, worse
from reports.run import Run, begin
from reports.upgrade import Certificate, Side
from suites import checks, ending, refusals
from suites.selection import Selection, select

BENCH, RUN, SELECTION = pytest.StashKey[Bench](), pytest.StashKey[Run](), pytest.StashKey[Selection]()
PENDING, CERTIFICATE = pytest.StashKey[Record](), pytest.StashKey[Certificate]()
WARNED: defaultdict[str, list[str]] = defaultdict(list)  # by node id; pytest hands that hook no config


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("spiritlevel", "what is under test, and where the report goes").addoption
    add("--deployment", type=Path, metavar="FILE", help="--deployment=deployment.toml: identity, claims, waivers")
    add("--model", default="", metavar="PATH_OR_ID", help="--model=… a folder of safetensors, a GGUF file, a hub id")
    add("--trust-remote-code", action="store_true", help="run the code that a checkpoint brings")
    add("--allow-pickle", action="store_true", help="load pickled weights")
    add("--seed", type=int, default=0, help="seed of every input and every seeded model (0)")
    add("--shape", type=Path, metavar="CONFIG", help="audit claims on random weights of this config.json's shape")
    add("--tier", choices=["standard", "full"], default="standard", help="full adds architectures and lengths")
    add("--report", type=Path, metavar="FOLDER", help="where the run goes (reports/runs/<time>-<host>)")
    add("--allow-partial", action="store_true", help="exit 0 although something was not verified")
    add("--checkpoints", type=Path, metavar="FOLDER", help="other reference models than fixtures/checkpoints")
    add("--require", choices=["core"], help="owe every promise, whatever was selected")
    add("--baseline", type=Path, metavar="RUN", help="--baseline=RUN: certify this run against that one, from before")
    add("--across-models", action="store_true", help="compare with a baseline although its model is another one")


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    option, now = config.option, datetime.datetime.now()
    config.addinivalue_line("markers", "gpu: a check that runs on CUDA")
    config.addinivalue_line("markers", "applies(**declared): only subjects that declare one of these values")
    config.addinivalue_line("markers", "capability(name): only where deployment.toml claims it")
    refusals.surroundings(config)
    try:
        bench = config.stash[BENCH] = assemble(config.pluginmanager, option, now.date())
    except BadInput as error:
        raise pytest.UsageError(str(error)) from error
    here, arguments = bench.environment.as_dict(), config.invocation_params.args
    kept = {"deployment.toml": option.deployment}
    config.stash[RUN] = begin(option.report, here, bench.facts(), arguments, now, kept)
    config.pluginmanager.register(bench, "spiritlevel-bench")


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    if said := promises.parse(getattr(getattr(item, "function", None), "__doc__", None)):
        item.stash[checks.PROMISE] = said


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Any:
    bench, option, collected = config.stash[BENCH], config.option, checks.of(items)
    refusals.slips(items)
    yield
    if not collected and not option.require:
        return  # no conformance run
    known, kept = promises.find(), checks.of(items)
    refusals.misspelt(bench, known, collected)
    relied_on = bench.deployment.relied_on
    selection = config.stash[SELECTION] = select(config, known, collected, bench.applicable, kept, relied_on)
    config.stash[RUN].facts["selection"] = selection.asked
    _refuse_a_baseline(config)
    if kept and not option.collectonly:
        try:
            config.stash[RUN].open()
        except OSError as error:
            raise pytest.UsageError(f"the report cannot be written: {error}") from error


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
    report = yield
    if checks.PROMISE in item.stash and (call.when == "call" or call.excinfo is not None):
        record = item.stash[PENDING] = worse(item.stash.get(PENDING, None), _record(item, call))
        ending.show(report, item, record.outcome, record.message, crash=record.crash)
    return report


def _record(item: pytest.Item, call: pytest.CallInfo[None]) -> Record:
    bench, option = item.config.stash[BENCH], item.config.option
    about, judge = checks.about(item), checks.judge(item)
    end = ending.of(call.excinfo.value if call.excinfo else None, judge, about, bench)
    if end.lost:
        bench.lost = f"the GPU cannot be used since {item.nodeid}: {summary.first_line(end.lost)}"
    rerun = wording.rerun(item.nodeid, bench.seed, option)
    return Record(
        **about,
        outcome=end.outcome,
        judgements=tuple(judge.as_dicts()),
        evidence=judge.evidence,
        message=wording.message(about, end.outcome, end.why, rerun),
        crash=end.crash,
        waiver=end.waiver,
        seconds=round(call.duration, 3),
        seed=bench.seed,
        rerun=rerun,
        environment=item.config.stash[RUN].environment,
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """One record a check, written when its teardown and its warnings are in."""
    result = yield
    record, warned = item.stash.get(PENDING, None), WARNED.pop(item.nodeid, [])
    if record is not None:
        item.config.stash[RUN].add(dataclasses.replace(record, warnings=tuple(dict.fromkeys(warned))))
    return result


def pytest_warning_recorded(warning_message: Any, nodeid: str) -> None:
    WARNED[nodeid].append(f"{warning_message.category.__name__}: {summary.first_line(str(warning_message.message))}")


def pytest_report_teststatus(report: Any) -> Any:
    return ending.status(report)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    stash, option = session.config.stash, session.config.option
    if SELECTION not in stash or option.collectonly or exitstatus in (3, 4):
        return
    bench, run, selection = stash[BENCH], stash[RUN], stash[SELECTION]
    run.notes += bench.notes()
    run.facts["not_here"] = dict(bench.not_here)
    terms: dict[str, Any] = {
        "owed": sorted(selection.owed),
        "scope": selection.scope,
        "stale": waivers.stale(bench.deployment.waivers, bench.environment.versions, run.records),
        "incomplete": selection.missed([r.outcome for r in run.records], session.testsfailed),
        "nothing": bench.explain() if "gpu" in option.markexpr else "",
        "allow_partial": option.allow_partial,
    }
    found = verdict.judge(run.records, **terms)
    run.close(found, terms)
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


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Bench:
    """The run's state, for the fixtures of suites/conftest.py."""
    return request.config.stash[BENCH]
