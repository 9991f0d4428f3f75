"""What healthy stacks measured: the tables of `fixtures/calibration/`, and how records become rows of them."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fixtures import waivers
from fixtures.waivers import known_failures
from reports.record import Record

ROOT = Path(__file__).parent.parent.parent
TABLES = ROOT / "fixtures" / "calibration"
HEADER = ("promise", "quantity", "dtype", "subject", "samples", "median", "p90", "excess", "maximum", "where", "checks")

# Of a check's parameters, those that name the subject whose distribution a row of a table is.
SUBJECTS = ("attention", "kv_cache", "encoding", "quantizer")
Key = tuple[str, str, str, str]
Slack = tuple[str, str, str]
Row = tuple[str, dict[str, str]]


class Sample(NamedTuple):
    """One number of a healthy check, on the scale on which its slack is given."""

    value: float
    check: str


def samples(records: Sequence[Record]) -> dict[Key, list[Sample]]:
    """What healthy checks measured, by promise, quantity, dtype and subject.

    The subject is the attention backend, cache, encoding or quantizer; models are pooled. What is known to be wrong on
    this stack is no sample. Raises ValueError where a check did not measure.
    """
    found: dict[Key, list[Sample]] = defaultdict(list)
    for record in records:
        if is_known(record):
            continue
        if why := unhealthy(record):
            raise ValueError(f"{record.check} {why}")
        subject = next((record.parameters[kind] for kind in SUBJECTS if kind in record.parameters), "")
        for judged in record.judgements:
            quantity = re.sub(r"^.*\b(worst row|overall|gain|plain reference)$", r"\1", str(judged["quantity"]))
            if judged["headroom"] is None:
                continue
            value = float(judged["measured"])
            if judged["dtype"]:
                found[record.promise, quantity, judged["dtype"], subject].append(Sample(value, record.check))
            elif "÷" in quantity:
                found[record.promise, quantity, "any", subject].append(Sample(max(value, 1 / value), record.check))
    return found


def is_known(record: Record) -> bool:
    """Whether a check is known to fail on the stack that it was judged on, which need not be this one."""
    installed = record.environment.get("versions", {})
    return record.outcome == "waived" or bool(waivers.excuse(known_failures(), installed, vars(record)))


def unhealthy(record: Record) -> str:
    """Why nothing that a check measured is a sample, empty where it is. Beyond what a slack allows is no reason."""
    if record.crash or record.outcome in ("unverified", "inconclusive"):
        return f"did not measure: {record.message}"
    exact = (j for j in record.judgements if j["headroom"] is None and j["outcome"] != "passed")
    return next((f"is not healthy: {j['quantity']} is {j['measured']}" for j in exact), "")


def write_table(name: str, measured: dict[Key, list[Sample]], stack: str) -> None:
    """One line for each key; `excess` is how far samples beyond the 90th percentile lie beyond it on average."""
    path = TABLES / f"{name}.tsv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        stream.write(f"# {stack}\n")
        table = csv.writer(stream, delimiter="\t", lineterminator="\n")
        table.writerow(HEADER)
        for key, found in sorted(measured.items()):
            ordered = sorted(found)
            p90, worst = ordered[math.ceil(0.9 * len(ordered)) - 1].value, ordered[-1]
            beyond = [s.value - p90 for s in ordered if s.value > p90]
            excess = sum(beyond) / len(beyond) if beyond else 0.0
            numbers = (f"{x:.5g}" for x in (ordered[len(ordered) // 2].value, p90, excess, worst.value))
            table.writerow((*key, len(ordered), *numbers, worst.check.split("::")[1], len({s.check for s in ordered})))


def every_row() -> list[Row]:
    """Every table's name with each of its rows, and in each the day of its measurement, with which a table begins."""
    return list(_every_row())


def _every_row() -> Iterator[Row]:
    for path in sorted(TABLES.glob("*.tsv")):
        with path.open(encoding="utf-8") as stream:
            day = next(stream).removeprefix("# ").split(",")[0]
            for row in csv.DictReader(stream, delimiter="\t"):
                yield path.stem, row | {"measured": day}


def slack_of(row: dict[str, str]) -> Slack:
    return row["promise"], row["quantity"], row["dtype"]


def counted(rows: Sequence[Row]) -> Counter[Slack]:
    """How many samples each slack has in these rows."""
    count = Counter[Slack]()
    for _, row in rows:
        count[slack_of(row)] += int(row["samples"])
    return count
