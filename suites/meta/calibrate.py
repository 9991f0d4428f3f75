"""How far a healthy stack is from the truth, over many seeds, and the slacks that follow.

`python -m suites.meta.calibrate --seeds 20` runs every seeded check that many times in one process, and one whole run
with the served model, and writes what was measured to `fixtures/calibration/`, a table for each device. What follows
`--` goes to pytest: `… --seeds 200 --name attention -- suites/attention/test_accuracy.py -k gqa-100`. Then, and with
`--derive` alone, it writes `fixtures/slacks.toml` from all tables that are there. Nothing in that file is set by hand.
`--from RUN [RUN …] --name NAME` takes the numbers of runs that were judged, folders of records.jsonl and run.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fixtures import judgement
from fixtures.slacks import LEDGER
from reports.record import Record, read
from reports.summary import first_line
from suites.meta import seeds
from suites.meta.allowance import CLOSEST, FLOORS, derived, factor, worst
from suites.meta.false_alarms import of_each_table, to_expect
from suites.meta.tables import counted, every_row, is_known, samples, unhealthy, write_table


def derive() -> str:
    """The text of slacks.toml: multiples of the largest healthy number of any table, to two digits, rounded up."""
    rows = every_row()
    count, slacks, largest = counted(rows), derived(rows), worst(rows)
    lines = [
        "# Written by `python -m suites.meta.calibrate`, from the tables in fixtures/calibration/: change those.",
        "# Policy: slack = factor × the healthy maximum, two digits, rounded up; for a ratio that ought to be 1 (dtype",
        f"# `any`), 1 + that of its distance from 1, which is taken to be {CLOSEST:g} at least.",
        *(f"# No {quantity} is held closer than {floor:g}." for quantity, floor in FLOORS.items()),
        *of_each_table(rows, slacks),
    ]
    for (promise, quantity, dtype), (healthy, where, measured) in sorted(largest.items()):
        lines += [
            "",
            f'["{promise}"."{quantity}".{dtype}]',
            f"slack = {slacks[promise, quantity, dtype]:g}",
            f"healthy = {healthy}",
            f"factor = {factor((promise, quantity, dtype)):g}",
            f"samples = {count[promise, quantity, dtype]}",
            f'where = "{where}"',
            f'measured = "{measured}"',
        ]
    return "\n".join(lines) + "\n"


class Measuring:
    """While calibrating there is nothing to allow yet: every slack is infinite, and only exact judgements count."""

    def __enter__(self) -> None:
        self.before = judgement.Judge._slack
        judgement.Judge._slack = lambda judge, quantity, dtype: (math.inf, "calibrating", 1.0)  # type: ignore[method-assign]

    def __exit__(self, *error: Any) -> None:
        judgement.Judge._slack = self.before  # type: ignore[method-assign]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--name", default="", help="name of the tables, by default the device's type")
    parser.add_argument("--only-cuda", action="store_true", help="leave the CPU's table as it is")
    parser.add_argument("--from", dest="judged", type=Path, nargs="+", metavar="RUN", help="measure no more: read them")
    parser.add_argument("--runs", type=Path, help="keep the runs here, and read those that are there already")
    parser.add_argument("--derive", action="store_true", help="only write slacks.toml from the tables")
    parser.add_argument("--state", type=Path, metavar="RUN", help="only say how many false alarms such a run raises")
    parser.add_argument("ask", nargs="*", help="what goes to pytest")
    chosen = parser.parse_args(arguments)
    if chosen.state:
        rate, known, unknown = to_expect(read(chosen.state / "records.jsonl"))
        print(
            f"{rate:.1g} false alarms are to be expected of {known:,} numbers; {unknown:,} more are not in the tables"
        )
        return 0
    if chosen.judged and not chosen.name:
        parser.error("--from writes a table of its own: give it a --name")
    if chosen.judged:
        for line in from_runs(chosen.judged, chosen.name):
            print(line)
    elif not chosen.derive:
        measure(chosen)
    LEDGER.write_text(derive(), encoding="utf-8")
    return 0


def measure(chosen: argparse.Namespace) -> None:
    records: list[Record] = []
    with Measuring(), tempfile.TemporaryDirectory() as folder:
        for seed in range(chosen.first, chosen.first + chosen.seeds):
            report = (chosen.runs or Path(folder)) / str(seed)
            ask = ["-p", "suites.meta.acme", *(["-m", "gpu"] if chosen.only_cuda else []), *chosen.ask]
            records += seeds.records(report, seed, ask, whole=seed == chosen.first)
    said = f"seeds {chosen.first} to {chosen.first + chosen.seeds - 1}"
    _write_tables(chosen.name, records, f"{datetime.date.today()}, {said}")


def from_runs(runs: Sequence[Path], name: str) -> list[str]:
    """Write the tables of runs that were judged: which of their checks are left out, and why.

    A number beyond its slack is a sample: whether the stack was healthy, whoever asks has to know.
    """
    records, left_out, days = [], [], []
    seeds: dict[str, list[int]] = {}
    for folder in runs:
        told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        days.append(told["started"][:10])
        seeds.setdefault(told.get("terms", {}).get("scope", "a part"), []).append(told["seed"])
        for record in read(folder / "records.jsonl"):
            if (why := unhealthy(record)) and not is_known(record):
                left_out.append(f"left out: {record.check} {first_line(why)}")
            else:
                records.append(record)
    asked = "; ".join(f"seeds {', '.join(map(str, sorted(of)))} of {scope}" for scope, of in seeds.items())
    _write_tables(name, records, f"{max(days)}, judged runs: {asked}")
    return left_out


def _write_tables(name: str, records: Sequence[Record], said: str) -> None:
    """A table for each device, by its name. Raises ValueError where the records are of several stacks."""
    devices = sorted({record.device for record in records} & {"cpu", "cuda"})
    for device in devices:
        mine = [record for record in records if record.device == device]
        stacks = {_stack(record.environment, device) for record in mine}
        if len(stacks) > 1:
            raise ValueError(f"a table is of one stack, and these records are of {'; of '.join(sorted(stacks))}")
        named = f"{name}-{device}" if name and len(devices) > 1 else name or device
        write_table(named, samples(mine), f"{said}, {stacks.pop()}")


def _stack(about: Mapping[str, Any], device: str) -> str:
    """The part of a stack that a device's numbers depend on, in words; `about` is an environment as records have it."""
    named = [f"{k} {about['versions'][k]}" for k in ("torch", "transformers", "bitsandbytes") if k in about["versions"]]
    gpu = [about["gpus"][0]["name"], f"driver {about['driver']}"] if device == "cuda" else []
    return ", ".join([about["cpu"], *named, *gpu])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
