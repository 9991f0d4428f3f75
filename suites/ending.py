"""How a check ended: what follows from an exception, a judge and the waivers, and what pytest shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from fixtures import environment, waivers
from fixtures.bench import Bench
from fixtures.judgement import Inconclusive, Judge, Rejected, Unverified
from fixtures.waivers import known_failures

LETTERS = {"waived": "w", "inconclusive": "i", "unverified": "u"}


class Ending(NamedTuple):
    """An outcome and why. crash: it failed without a judgement; lost: what was said when the GPU was gone or broken."""

    outcome: str
    why: str = ""
    crash: bool = False
    waiver: Mapping[str, str] | None = None
    lost: str = ""


def of(error: BaseException | None, judge: Judge, about: Mapping[str, Any], bench: Bench) -> Ending:
    """How a check that ended with this exception, or with none, ended."""
    ending = _judged(error, judge)
    if ending.crash and about["device"] == "cuda" and not environment.context_is_alive("cuda"):
        return _lost(ending)
    if ending.outcome == "failed" and not ending.crash:
        waiver = waivers.excuse([*bench.deployment.waivers, *known_failures()], bench.environment.versions, about)
        return ending._replace(outcome="waived", waiver=waiver) if waiver else ending
    return ending


def dead(why: str, about: Mapping[str, Any]) -> Ending:
    """How a check ended whose process did: no waiver excuses it, unless the GPU went away."""
    ending = Ending("failed", why, crash=True)
    gone = about["device"] == "cuda" and not environment.device_is_alive("cuda")
    return _lost(ending) if gone else ending


def _judged(error: BaseException | None, judge: Judge) -> Ending:
    told = [j.sentence() for j in judge.judgements if j.outcome == "failed"]
    if isinstance(error, Rejected):
        return Ending("failed", str(error))
    if told and (error is None or isinstance(error, (Unverified, Inconclusive, pytest.skip.Exception))):
        return Ending("failed", "\n".join([*told, str(error or "")]))
    if isinstance(error, (Unverified, pytest.skip.Exception)):
        return Ending("unverified", str(error))
    if isinstance(error, Inconclusive):
        return Ending("inconclusive", str(error))
    if error is None:
        return Ending("passed")
    return Ending("failed", "\n".join([f"{type(error).__name__}: {error}", *told]), crash=True)


def _lost(ending: Ending) -> Ending:
    """A GPU that went away failed nothing; one that is there all the same was broken by the check."""
    if environment.device_is_alive("cuda"):
        return ending._replace(lost=ending.why)
    return Ending("unverified", f"the GPU disappeared during the run: {ending.why}", lost=ending.why)


def show(report: Any, item: pytest.Item, outcome: str, message: str, *, crash: bool) -> None:
    """Make pytest's report of an item say how the check ended; only a crash keeps its traceback."""
    report.sections = [s for s in report.sections if outcome == "failed"]
    if outcome in LETTERS:
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, message)
        report.spiritlevel = outcome
    elif outcome == "failed":
        report.outcome = "failed"
        if not crash:
            report.longrepr = message


def status(report: Any) -> tuple[str, str, str] | None:
    """Category, letter and word for an outcome that pytest does not know."""
    word = getattr(report, "spiritlevel", None)
    return (word, LETTERS[word], word.upper()) if word else None
