"""The upgrade certificate: two runs, check by check and token by token, and one verdict.

`python -m reports.compare BEFORE AFTER` takes folders of runs, or files of records; `pytest --baseline BEFORE` compares
at the end of a run. A certificate says one of

| verdict    | code | when                                                                                            |
|------------|------|-------------------------------------------------------------------------------------------------|
| safe       | 0    | every check of both runs passes, or is waived, in both, and is equal in every bit or within the |
|            |      | noise floor; every first choice that flipped is explained by noise; nothing drifts              |
| regression | 1    | a check fails that did not, or is no longer verified, or vanished (a backend that is gone is a  |
|            |      | finding); a first choice flipped that noise does not explain; tokens of the text are lost       |
| changed    | 3    | neither: something moved within its allowance, drifts, is waived or passes or is there and was  |
|            |      | not before; or fails, or is unverified, in both: nobody is to read "safe" of it                 |
| refused    | 4    | the two cannot be compared: one is no run, or of another schema; seed, data, model, or what was |
|            |      | asked for, differ; or no check is in both                                                       |

Paired are checks of the same node id whose promise says the same. Of one that passes in both,

- bitwise equal: the checksum of its output, what was said of each token, and every number is the same;
- within the noise floor: they are not, but no number takes more of its allowance than before, or more than healthy
  stacks took over many seeds; an interval's estimate lies within the interval of before;
- moved within the allowance: all others, and answers that are exact, such as a kernel's name, where they are new.

A flip is unexplained where either run had its first choice ahead by more than plain arithmetic in that dtype turns
around. Tokens are lost where McNemar's exact test of those of the text that are ranked first says so, corrected for how
many checks were asked (Bonferroni).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reports import certificate, drift, pairing, tokens
from reports.pairing import CHANGED, KINDS, REGRESSION, SAFE, Entry
from reports.record import Record, read

REFUSED = "refused"
EXIT = {SAFE: 0, REGRESSION: 1, CHANGED: 3, REFUSED: 4}
ALPHA = 0.01


class NoRun(ValueError):
    """There is no run to be read: why."""


@dataclass(frozen=True)
class Side:
    """A run as it lies in its folder. facts: run.json, empty where it was not written, or only records are given."""

    name: str
    records: Sequence[Record]
    facts: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Certificate:
    """What became of everything, and what changed in the stack: (what, before, after). refused: why it says nothing."""

    before: Side
    after: Side
    stack: list[tuple[str, str, str]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    flips: list[tokens.Flips] = field(default_factory=list)
    drifts: list[drift.Drift] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: str = ""

    @property
    def count(self) -> Counter[str]:
        """How many checks of each kind there are."""
        return Counter(e.kind for e in self.entries)

    @property
    def verdict(self) -> str:
        if self.refused:
            return REFUSED
        found = {KINDS[kind] for kind in self.count}
        lost = [f for f in self.flips if f.unexplained or (f.lost > f.won and self.significant(f))]
        if REGRESSION in found or lost:
            return REGRESSION
        return CHANGED if CHANGED in found or self.drifts or any(map(self.significant, self.flips)) else SAFE

    @property
    def exit_code(self) -> int:
        return EXIT[self.verdict]

    @property
    def sentence(self) -> str:
        """The verdict with its counts, the worst first."""
        if self.refused:
            return f"refused: {self.refused}"
        counts = [f"{self.count[kind]:,} {kind}" for kind in KINDS if self.count[kind]]
        flips = sum(f.flips for f in self.flips)
        if flips:
            asked, odd = sum(f.tokens for f in self.flips), sum(f.unexplained for f in self.flips)
            counts.append(f"{flips:,} of {asked:,} first choices flipped, {odd:,} unexplained")
        counts += [f"{len(self.drifts)} quantities drift"] * bool(self.drifts)
        return f"{self.verdict}: {'; '.join(counts)}"

    def significant(self, found: tokens.Flips) -> bool:
        """Whether more tokens were lost, or won, than chance makes of as many checks as were asked."""
        return found.p * len(self.flips) < ALPHA


def load(path: Path) -> Side:
    """The run in a folder, or a file of records. Raises NoRun where there is none that can be read."""
    path = path.expanduser()
    file = path / "records.jsonl" if path.is_dir() else path
    try:
        records = read(file)
        facts, environment = (_json(file.with_name(f"{name}.json")) for name in ("run", "environment"))
    except (OSError, ValueError, TypeError) as error:
        raise NoRun(f"{path} is no run: {error}") from error
    if not records:
        raise NoRun(f"{path} is no run: no check was recorded in it")
    return Side(path.name, records, facts, environment or records[0].environment)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def refusal(before: Side, after: Side, *, across_models: bool = False) -> str:
    """Why two runs cannot be compared, by what they say of themselves; empty where they can."""
    for what, old, new in _conditions(before, after):
        if None not in (old, new) and old != new and not (across_models and what == "the model"):
            return f"{what} differs: {_text(old)} before, {_text(new)} after"
    return ""


def compare(before: Side, after: Side, *, across_models: bool = False) -> Certificate:
    """The certificate of two runs, refused where they cannot be compared."""
    stack, both = _differences(before.environment, after.environment), pairing.both(before.records, after.records)
    why = refusal(before, after, across_models=across_models) or ("" if both else "no check is in both runs")
    if why:
        return Certificate(before, after, stack, refused=why)
    return Certificate(
        before,
        after,
        stack,
        entries=pairing.pair(before.records, after.records),
        flips=[found for old, new in both for found in _flips(old, new)],
        drifts=drift.drifts(both),
        notes=[
            f"whether {what} is the same is not known: it does not stand in both runs"
            for what, *said in _conditions(before, after)
            if None in said
        ],
    )


def of(before: Path, after: Path, *, across_models: bool = False) -> Certificate:
    """The certificate of two runs as they lie on the disk."""
    try:
        return compare(load(before), load(after), across_models=across_models)
    except NoRun as error:
        return Certificate(Side(before.name, ()), Side(after.name, ()), refused=str(error))


def _conditions(before: Side, after: Side) -> Iterator[tuple[str, Any, Any]]:
    """What has to be the same in two runs, None where a run does not say."""
    yield "the seed", _seed(before), _seed(after)
    for what, key in {"the data": "data", "the model": "model", "what was asked for": "selection"}.items():
        yield what, before.facts.get(key), after.facts.get(key)


def _seed(side: Side) -> Any:
    return side.facts["seed"] if "seed" in side.facts else next(iter({r.seed for r in side.records}), None)


def _flips(before: Record, after: Record) -> Iterator[tokens.Flips]:
    old, new = before.evidence.get("said", {}), after.evidence.get("said", {})
    for what in old:
        if what in new and (found := tokens.compare(after.check, what, old[what], new[what])):
            yield found


def _differences(before: Any, after: Any, where: str = "") -> list[tuple[str, str, str]]:
    """What is not the same in two environments, by name."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = [*before, *(k for k in after if k not in before)]
        return [row for k in keys for row in _differences(before.get(k), after.get(k), f"{where} {k}".strip())]
    return [] if before == after else [(where.removeprefix("versions "), _text(before), _text(after))]


def _text(value: Any) -> str:
    if value in (None, "", [], ()):
        return "none"
    if isinstance(value, (set, list, tuple)):
        return ", ".join(map(_text, value))
    return ", ".join(f"{k} {_text(v)}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m reports.compare", description="The upgrade certificate of two runs.")
    parser.add_argument("before", type=Path, help="a run's folder, or its records.jsonl")
    parser.add_argument("after", type=Path)
    parser.add_argument("--across-models", action="store_true", help="compare although the model is another one")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write certificate.md, .html and .json there")
    option = parser.parse_args(arguments)
    found = of(option.before, option.after, across_models=option.across_models)
    if option.out:
        certificate.write(option.out, found)
    print(certificate.terminal(found))
    return found.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
