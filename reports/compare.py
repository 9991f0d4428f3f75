"""The upgrade certificate: two runs, check by check and token by token, and one verdict.

`python -m reports.compare BEFORE AFTER` takes folders of runs, or files of records; `pytest --baseline BEFORE` compares
at the end of a run. Its exit code is the verdict's: safe 0, regression 1, changed 3, refused 4; upgrade.py says when.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reports import certificate, drift, pairing, tokens
from reports.record import DOCTORED, Record, read
from reports.upgrade import Certificate, Side


class NoRun(ValueError):
    """There is no run to be read: why."""


def load(path: Path) -> Side:
    """The run in a folder, or a file of records. Raises NoRun where there is none that can be read."""
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
    except DOCTORED as error:
        told = f"one of the runs holds what no check has written: {error!r}"
        return Certificate(Side(before.name, ()), Side(after.name, ()), refused=told)


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
