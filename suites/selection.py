"""What was asked for, what that owes, and how much of it was left out.

What is owed is decided by the paths that were asked for, unless checks are asked for by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from reports.record import order
from reports.verdict import STOPPED
from suites import checks
from suites.checks import SUITES
from suites.workers import ALONE


@dataclass(frozen=True)
class Selection:
    """What a run's verdict is about: ids of the promises owed, in words, how many checks are to run, what was asked.

    absent: promises that are not owed, since what they are about is not on this stack: its name -> their ids.
    """

    owed: set[str]
    absent: Mapping[str, list[str]]
    scope: str
    count: int
    left_out: int
    asked: Mapping[str, Any]

    def notes(self) -> list[str]:
        """What a reader must know of what is not owed."""
        return [f"no {subjects} is here: {', '.join(ids)} not owed" for subjects, ids in self.absent.items()]

    def missed(self, outcomes: list[str], failures: int) -> list[str]:
        """Why not all was run that was asked for, by the checks' outcomes and what pytest counts as failures."""
        told = {
            f"{self.left_out} checks deselected": self.left_out,
            STOPPED: len(outcomes) < self.count,
            "errors outside the checks": failures > outcomes.count("failed"),
        }
        return [why for why, holds in told.items() if holds]


def select(
    config: pytest.Config,
    known: Collection[Any],
    collected: list[pytest.Item],
    applicable: list[pytest.Item],
    kept: list[pytest.Item],
    capabilities: Collection[str],
    required: Collection[str] = (),
) -> Selection:
    """The selection that a command line comes to.

    `known` are the promises of the suites; `collected` the checks in the paths that were asked for, `applicable`
    those of them that apply here, `kept` those that are to run; `required` are the promises that a policy owes.
    """
    option, args = config.option, config.args
    by_name = option.keyword or option.markexpr not in ("", "gpu") or any("::" in arg for arg in args)
    if option.require:
        owed = set(required) | {p.id for p in known if p.capability}
    elif by_name or option.tier == "smoke":
        owed = checks.promised(kept)
    else:
        asked = [(config.invocation_params.dir / arg.split("::")[0]).resolve() for arg in args]
        owed = {p.id for p in known if any((SUITES.parent / p.file).is_relative_to(path) for path in asked)}
        owed |= checks.promised(collected)
    owed -= {p.id for p in known if p.capability and p.capability not in capabilities}
    lacking = owed & checks.promised(collected) - checks.promised(checks.of(applicable))
    absent: dict[str, list[str]] = {}
    for p in sorted({p.id: p for p in known if p.subjects and p.id in lacking}.values(), key=lambda p: order(p.id)):
        absent.setdefault(p.subjects, []).append(p.id)
    owed = owed.difference(*absent.values())
    wanted = {item for item in applicable or collected if item.get_closest_marker("gpu") or not option.markexpr}
    left_out = 0 if by_name and not option.require else len(wanted - set(kept))
    scope = _scope(option, {p.area for p in known} - ALONE, set(map(checks.area, collected)))
    return Selection(owed, absent, scope, len(kept), left_out, _asked(config))


def _asked(config: pytest.Config) -> dict[str, Any]:
    """What was asked for, so that another run can be told to have been asked for the same."""
    root, option = f"{SUITES.parent}/", config.option
    paths = sorted(str(config.invocation_params.dir / arg).replace(root, "") for arg in config.args)
    return {"tier": option.tier, "-k": option.keyword, "-m": option.markexpr, "paths": paths}


def _scope(option: Any, known: set[str], areas: set[str]) -> str:
    """What the verdict is about, in words."""
    told = ["all areas" if known <= areas else f"{', '.join(sorted(areas)) or 'nothing'} only"]
    told += [f"tier {option.tier}"] * (option.tier != "standard")
    told += [f"-{letter} {said!r}" for letter, said in (("k", option.keyword), ("m", option.markexpr)) if said]
    return ", ".join(told)
