"""What would go unnoticed is refused: a stack out of range, a slip in a docstring or a waiver."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

import pytest

from fixtures import environment, text
from fixtures.bad_input import BadInput
from fixtures.bench import Bench
from fixtures.judgement import Unverified
from fixtures.soundness import check_tokens
from fixtures.tokenizing import tokenizer_of
from fixtures.waivers import Waiver
from suites import checks, workers
from suites.checks import PROMISE, SUITES


def surroundings() -> None:
    """A run on a stack that is not supported would blame it on the deployment."""
    if misfits := environment.out_of_range(SUITES.parent / "pyproject.toml"):
        raise pytest.UsageError("; ".join(misfits))


def crowded(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """A run of nothing but what measures time has nothing to do in workers."""
    areas = {checks.area(item) for item in items}
    if workers.involved(config) and areas and areas <= workers.ALONE:
        raise pytest.UsageError(f"{', '.join(areas)} measures time: run it without -n")


def slips(items: Iterable[pytest.Item]) -> None:
    """A check whose docstring is not a promise would run and be counted nowhere."""
    for item in items:
        in_area = item.path.is_relative_to(SUITES) and not item.path.is_relative_to(SUITES / "meta")
        if PROMISE not in item.stash and (in_area or "judge" in getattr(item, "fixturenames", ())):
            raise pytest.UsageError(f"{item.nodeid}: its docstring must begin with a promise: 'AREA-1: … MUST …'")


def misspelt(bench: Bench, known: list[Any], items: list[pytest.Item]) -> None:
    """A waiver that names nothing excuses nothing, and would never be noticed.

    `known` are the promises of the suites, `items` the checks that were collected.
    """
    ids = {p.id for p in known} | checks.promised(items)
    functions = {f"{p.file}::{p.function}" for p in known} | {item.nodeid.split("[")[0] for item in items}
    collected = {item.nodeid for item in items} | bench.refused
    subjects = bench.subjects()
    for waiver in bench.deployment.waivers:
        function = waiver.check.split("[")[0]
        if waiver.promise and not fnmatch.filter(ids, waiver.promise):
            raise pytest.UsageError(f"{waiver}: there is no promise {waiver.promise}")
        if waiver.check and function not in functions:
            raise pytest.UsageError(f"{waiver}: there is no check {function}")
        here = {c for c in collected if c.split("[")[0] == function}
        if waiver.parameters and (odd := _unknown_parameter(waiver, known, items)):
            raise pytest.UsageError(f"{waiver}: {odd}")
        elsewhere = waiver.check.endswith("-cuda]") or waiver.device not in ("*", *bench.environment.devices)
        if waiver.check and here and waiver.check not in here and not elsewhere:
            raise pytest.UsageError(f"{waiver}: {function} has no such parameters; it has {min(here)}")
        if not elsewhere and not any(fnmatch.fnmatchcase(name, waiver.subject) for name in subjects):
            raise pytest.UsageError(f"{waiver}: there is no subject {waiver.subject}; there are {sorted(subjects)}")


def _unknown_parameter(waiver: Waiver, known: list[Any], items: list[pytest.Item]) -> str:
    """What is wrong with the parameters of a waiver, as far as all checks that it may mean were collected."""
    about = [told for told in map(checks.about, items) if waiver.meant(told["promise"], told["check"])]
    collected = {told["check"].split("[")[0] for told in about}
    taken = {name for told in about for name in told["parameters"]}
    unknown = sorted(set(waiver.parameters) - taken)
    everywhere = {f"{p.file}::{p.function}" for p in known if waiver.meant(p.id, "")} <= collected
    if not (about and unknown and everywhere):
        return ""
    return f"none of its checks has a parameter {unknown[0]}; they have {', '.join(sorted(taken)) or 'none'}"


def foreign_tokens(release: Any, case: Any) -> None:
    """Each check of the served model would raise, or worse, be about padding."""
    try:
        tokenizer = tokenizer_of(case)
    except Unverified:
        return  # each check says so
    ids = {token for said in text.documents() for token in tokenizer(said, add_special_tokens=False).input_ids}
    try:
        check_tokens(f"--model {release.path}", ids, case.config())
    except BadInput as error:
        raise pytest.UsageError(str(error)) from error
