"""Which faults the suite was seen to reject, and on what stack.

A line of teeth.jsonl is about one fault, as `python -m suites.meta.teeth` has asked it; `python -m reports.teeth FILE`
writes such files as Markdown.
"""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reports.markdown import table

ROOT = Path(__file__).parent
FOLDERS = (ROOT / "runs" / "teeth", ROOT / "published")

# What a fault comes to on a device. Of the last two none can be detected or missed.
MISSED = ("passed", "inconclusive", "crashed", "healthy side did not pass", "not equivalent")
OUTCOMES = ("detected", *MISSED, "not applicable here", "equivalent")

Row = Mapping[str, Any]


def stack(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must have in common for what was seen in one to say something of the other."""
    alike = {key: environment.get(key) for key in ("python", "system", "cpu", "driver", "cuda", "cudnn", "versions")}
    return alike | {"gpus": [gpu["name"] for gpu in environment.get("gpus", ())]}


def read(path: Path) -> list[dict[str, Any]]:
    """Every line; the last one of a process that was killed may be cut, and is left out."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as stream:
        return [row for line in stream if (row := _parsed(line))]


def _parsed(line: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return found


def misses(rows: Iterable[Row]) -> list[tuple[str, str, str, str, str]]:
    """fault, promise, device, outcome and why, of what could act here and was not detected."""
    return [(*_who(row), device, end["outcome"], end["why"]) for row, device, end in _ends(rows, *MISSED)]


def _who(row: Row) -> tuple[str, str]:
    return row["fault"], row["promise"]


def _ends(rows: Iterable[Row], *outcomes: str) -> list[tuple[Row, str, Row]]:
    """Each device of each fault that came to one of the outcomes."""
    return [(r, d, end) for r in rows for d, end in r["devices"].items() if end["outcome"] in outcomes]


def wilson(hits: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927, JASA 22:209)."""
    share, spread = hits / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def rates(rows: Iterable[Row]) -> list[tuple[str, str, str, str, str, str]]:
    """area, device, dtype, detected of asked, rate, its interval: of each area in all and by dtype, and of all areas.

    By dtype, a fault counts where its question has checks in that dtype, whether it can be seen there or not.
    """
    asked: Counter[tuple[str, str, str]] = Counter()
    seen: Counter[tuple[str, str, str]] = Counter()
    for row, device, end in _ends(rows, "detected", *MISSED):
        by_dtype = {"any": end["outcome"] == "detected"} | end["dtypes"]
        for area in (row["area"], "all"):
            for dtype, detected in by_dtype.items():
                asked[area, device, dtype] += 1
                seen[area, device, dtype] += detected
    order = sorted(asked, key=lambda key: (key[0] == "all", key[0], key[1], key[2] != "any", key[2]))
    return [
        (*key, f"{seen[key]} of {asked[key]}", f"{seen[key] / asked[key]:.1%}", "{:.1%} … {:.1%}".format(*interval))
        for key in order
        for interval in [wilson(seen[key], asked[key])]
    ]


ALARMS = ("device", "check")
RATES = ("area", "device", "dtype", "detected", "rate", "95 %")


def markdown(rows: Sequence[Row]) -> str:
    """The matrix: what was asked where, the rates, each miss and why, and which promises rejected each fault."""
    stacks = list({json.dumps(r["stack"], sort_keys=True): r["stack"] for r in rows}.values())
    dates, programs = sorted({r["when"][:10] for r in rows}), sorted({r["programs"] for r in rows})
    lines = [
        "# Teeth",
        f"**{sentence(rows)}**",
        "Detected: a judgement of the fault's own area failed, and the same check passed without the fault in the same "
        "process. A crash is no detection.",
        table(
            [
                ("when", " to ".join(dict.fromkeys((dates[0], dates[-1])))),
                ("suite", ", ".join(programs)),
                *((name, _told(told)) for one in stacks for name, told in one.items() if told),
            ],
            ("", "what was asked"),
        ),
        "## Detection rate",
        table(rates(rows), RATES),
        "## Missed",
        _listed(misses(rows), ("fault", "promise", "device", "outcome", "why"), "None."),
        "## Alarms without a fault",
        _listed(sorted({(d, said) for r, d, end in _ends(rows, *OUTCOMES) for said in end["alarms"]}), ALARMS, "None."),
        "## Not applicable here",
        _listed(
            [(*_who(r), d, end["why"]) for r, d, end in _ends(rows, "not applicable here")],
            ("fault", "promise", "device", "lacking"),
            "None.",
        ),
        "## Equivalent mutants, not counted",
        _listed(
            [(r["fault"], r["statement"], end["why"]) for r, _, end in _ends(rows, "equivalent")],
            ("mutant", "what it does", "why nobody can see it"),
            "None was asked.",
        ),
        "## Fault × promise",
    ]
    areas: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for row, device, end in _ends(rows, "detected", *MISSED):
        areas[row["area"]].append(
            (row["fault"], ", ".join(end["rejected"]) or f"none: {row['promise']} ought to", device, row["statement"])
        )
    for area, matrix in sorted(areas.items()):
        lines += [f"### {area}", table(matrix, ("fault", "rejected by", "on", "what it is"))]
    return "\n\n".join(lines) + "\n"


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def _listed(rows: Sequence[Sequence[Any]], header: Sequence[str], none: str) -> str:
    return table(rows, header) if rows else none


def sentence(rows: Iterable[Row]) -> str:
    """How many were detected, in words, by device."""
    count: dict[str, Counter[str]] = defaultdict(Counter)
    for _, device, end in _ends(rows, *OUTCOMES):
        count[device]["missed" if end["outcome"] in MISSED else end["outcome"]] += 1
    told = []
    for device, of in sorted(count.items()):
        applied = of["detected"] + of["missed"]
        parts = [f"{of['detected']} of {applied} faults detected on {device}"]
        parts += [f"{of[word]} {word}" for word in ("not applicable here", "equivalent") if of[word]]
        told.append(", ".join(parts))
    return "; ".join(told) or "no fault was asked"


def seen(environment: Mapping[str, Any], programs: str, folders: Sequence[Path] = FOLDERS) -> str:
    """What a run says of its own teeth: the newest matrix of its suite on its stack, or that there is none."""
    wanted = json.loads(json.dumps(stack(environment)))
    newest: dict[str, Row] = {}
    for path in sorted(path for folder in folders for path in folder.glob("*teeth*.jsonl*")):
        for row in read(path):
            if (row.get("programs"), row.get("stack")) == (programs, wanted):
                newest[row["fault"]] = max(newest.get(row["fault"], row), row, key=lambda r: str(r["when"]))
    if not newest:
        return "green was never seen red on this stack: `python -m suites.meta.teeth` shows it"
    return f"{sentence(newest.values())} ({max(str(r['when']) for r in newest.values())[:10]}, this suite, this stack)"


def main(arguments: list[str]) -> int:
    print(markdown([row for path in arguments for row in read(Path(path))]), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
