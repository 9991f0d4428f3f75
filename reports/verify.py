"""Whether a run is what it says: `python -m reports.verify RUN` judges it again from its records, and exits 0 or 1.

Every judgement's outcome is followed from what was measured and what was allowed, every check's from its judgements,
the verdict from the checks; and the files of the folder must be those that the run wrote.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reports import verdict
from reports.files import checksums, legible
from reports.record import Record, read

# What no run is without.
FILES = ("environment.json", "records.jsonl", "report.html", "report.md", "report.xml")

Judged = Mapping[str, Any]


def _number(judged: Judged, name: str, otherwise: float = float("nan")) -> float:
    return otherwise if judged.get(name) is None else float(judged[name])


def _equal(judged: Judged) -> str:
    return "passed" if judged["measured"] == judged["allowed"] else "failed"


def _one_of(judged: Judged) -> str:
    seen, wanted = str(judged["measured"]), str(judged["allowed"]).removeprefix("one of ").split(", ")
    hit = not seen.startswith("none of ") and any(fnmatch.fnmatchcase(seen, f"*{pattern}*") for pattern in wanted)
    return "passed" if hit else "failed"


def _at_most(judged: Judged) -> str:
    high = _number(judged, "high")
    return "passed" if _number(judged, "measured") <= high == _number(judged, "allowed") else "failed"


def _between(judged: Judged) -> str:
    holds = _number(judged, "low") <= _number(judged, "measured") <= _number(judged, "high")
    return "passed" if holds else "failed"


def _tie(judged: Judged) -> str:
    return "passed" if _number(judged, "margin") < _number(judged, "high") else _equal(judged)


def _interval(judged: Judged) -> str:
    """Inside of the margins, beyond one of them, or astride; what is not finite has failed."""
    start, end = map(float, judged["interval"])
    low, high = _number(judged, "low", float("-inf")), _number(judged, "high", float("inf"))
    finite = all(abs(x) < float("inf") for x in (start, end, _number(judged, "measured")))
    if not finite or end < low or start > high:
        return "failed"
    return "passed" if low <= start and end <= high else "inconclusive"


RULES: dict[str, Callable[[Judged], str]] = {
    "equal": _equal,
    "one of": _one_of,
    "at most": _at_most,
    "between": _between,
    "equal or tie": _tie,
    "interval": _interval,
}


def judgement(judged: Judged) -> str:
    """The outcome that follows from a judgement's own numbers; a word that is none where they say nothing."""
    try:
        return RULES[judged["rule"]](judged)
    except (KeyError, TypeError, ValueError) as error:
        return f"unknown, for want of {error}"


def outcomes(record: Record) -> set[str]:
    """The outcomes that a check can have had with its judgements, as they follow from their numbers."""
    found = {judgement(j) for j in record.judgements}
    if record.crash:
        return {"failed"}
    if "failed" in found:
        return {"failed"} | ({"waived"} if record.waiver else set())
    if not found:  # nothing was judged: for a reason that was said, or not
        return {"failed", "unverified", "inconclusive"}
    return {"unverified", "inconclusive"} | (set() if "inconclusive" in found else {"passed"})


def problems(folder: Path) -> list[str]:
    """What is wrong with a run's folder, a sentence each."""
    try:
        run, environment = (json.loads((folder / f"{n}.json").read_text("utf-8")) for n in ("run", "environment"))
        records = read(folder / "records.jsonl")
    except (OSError, ValueError, RecursionError) as error:
        return [f"it cannot be read: {error}"]
    if not isinstance(run, dict):
        return ["it cannot be read: run.json holds no object"]
    return [
        *_files(folder, run),
        *_records(records, run, environment),
        *_waivers(folder, records),
        *_verdict(records, run),
    ]


def _files(folder: Path, run: Mapping[str, Any]) -> list[str]:
    noted, found = run.get("sha256"), checksums(folder)
    if not noted or not isinstance(noted, dict):
        return ["run.json holds no checksums: nothing says that its files belong together"]
    told = [f"{name}: run.json has no checksum of it" for name in FILES if name not in noted]
    told += [f"{name}: is gone" for name in sorted(set(noted) - set(found))]
    return told + [
        f"{name}: is not the file that the run wrote" for name in noted if found.get(name, noted[name]) != noted[name]
    ]


def _records(records: Sequence[Record], run: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    told = [f"{check}: has {n} records" for check, n in Counter(r.check for r in records).items() if n > 1]
    for record in records:
        told += [
            f"{record.check}: {judged.get('quantity')}: says {judged.get('outcome')}, and from measured "
            f"{judged.get('measured')} and allowed {judged.get('allowed')} follows {follows}"
            for judged in record.judgements
            if (follows := judgement(judged)) != judged.get("outcome")
        ]
        if record.outcome not in (possible := outcomes(record)):
            told.append(f"{record.check}: says {record.outcome}, and from its judgements follows {min(possible)}")
        if record.environment != environment:
            told.append(f"{record.check}: was measured in another environment than environment.json says")
        if record.seed != run.get("seed"):
            told.append(f"{record.check}: was measured with seed {record.seed}, and the run says {run.get('seed')}")
    return told


def _waivers(folder: Path, records: Sequence[Record]) -> list[str]:
    """A waiver is the suite's own, or stands in the deployment file that the run kept."""
    file, keys = folder / "deployment.toml", ("reason", "owner", "link")
    try:
        kept = tomllib.loads(file.read_text(encoding="utf-8")).get("waiver", []) if file.exists() else []
        known = [tuple(w.get(k) for k in keys) for w in kept]
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        return [f"deployment.toml: {error}"]
    waived = [(r.check, r.waiver) for r in records if r.waiver and r.waiver.get("owner") != "spiritlevel"]
    return [
        f"{check}: no waiver of the deployment file excuses it"
        for check, waiver in waived
        if tuple(waiver.get(k) for k in keys) not in known
    ]


def _verdict(records: Sequence[Record], run: Mapping[str, Any]) -> list[str]:
    said = run.get("verdict")
    try:
        found = verdict.judge(records, **run["terms"])
    except (KeyError, TypeError, AttributeError) as error:
        return [f"the verdict cannot be judged again, for want of its terms in run.json ({error})"]
    follows = {"name": found.name, "sentence": found.sentence, "exit_code": found.exit_code}
    told = said.get("sentence") if isinstance(said, dict) else said
    return [] if said == follows else [f"says {told!r}, and from its records follows {found.sentence!r}"]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.verify", description="Judge a run again from its records.")
    parser.add_argument("run", type=Path, help="the folder of a run")
    folder = parser.parse_args(arguments).run
    if found := problems(folder):
        print("\n".join([*found, f"{legible(folder)} is not what it says it is: {len(found):,} findings"]))
        return 1
    records, run = read(folder / "records.jsonl"), json.loads((folder / "run.json").read_text("utf-8"))
    judged = sum(len(r.judgements) for r in records)
    named = f"{legible(folder)}: {judged:,} judgements of {len(records):,} records"
    print(f"{named} and the verdict follow from what was measured;")
    print(f"its {len(run['sha256'])} files are those that the run wrote: {run['verdict']['sentence']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
