"""How many false alarms slacks let through, if a healthy distribution falls off exponentially where they stand.

`suites.meta.held_out` asks the same of the tables without that assumption.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from reports.record import Record
from suites.meta.allowance import derived
from suites.meta.tables import Key, Row, Slack, every_row, samples, slack_of

# Where nothing was measured beyond the 90th percentile, the tail is taken to be this long.
TINY = 1e-9


def _with_tails(rows: Sequence[Row]) -> Iterator[Row]:
    """Rows of tables that keep tails: the first ones did not."""
    return ((table, row) for table, row in rows if "excess" in row)


def of_each_table(rows: Sequence[Row], slacks: dict[Slack, float]) -> list[str]:
    """How many false alarms a run of a table's checks raises on average, as comments, a line for each table."""
    tails, expected = tails_of(rows), defaultdict[str, float](float)
    for table, row in _with_tails(rows):
        key = slack_of(row)
        expected[table] += int(row["checks"]) * beyond(float(row["p90"]), tails[key], slacks[key])
    return [
        f"# False alarms to expect of one run of the checks in {table}.tsv, under an exponential tail: {rate:.1g}"
        for table, rate in expected.items()
    ]


def tails_of(rows: Sequence[Row]) -> dict[Slack, float]:
    """For each slack, how far the samples beyond their subject's 90th percentile lie beyond it, on average.

    A healthy distribution is taken to fall off exponentially there, and to do so alike for all subjects and machines:
    of one alone, too few samples are that far out. The mean is then the maximum-likelihood estimate of its scale.
    """
    total, count = defaultdict[Slack, float](float), defaultdict[Slack, int](int)
    for _, row in _with_tails(rows):
        key, many = slack_of(row), int(row["samples"])
        far = many - math.ceil(0.9 * many)
        total[key] += far * float(row["excess"])
        count[key] += far
    return {key: max(total[key] / max(count[key], 1), TINY) for key in total}


def beyond(p90: float, tail: float, allowed: float) -> float:
    """How probable it is that one healthy number is larger than what is allowed."""
    return 0.1 * math.exp(min(0.0, (p90 - allowed) / tail))


def to_expect(records: Sequence[Record]) -> tuple[float, int, int]:
    """Of a run of these checks: the false alarms to expect, of how many numbers, and how many numbers are unknown.

    A number whose promise, quantity, dtype and subject no table has is unknown, as is one that no slack bounds.
    """
    rows = every_row()
    tails, p90, slacks = tails_of(rows), defaultdict[Key, float](float), derived(rows)
    for _, row in _with_tails(rows):
        subject = *slack_of(row), row["subject"]
        p90[subject] = max(p90[subject], float(row["p90"]))
    drawn = {key: len(found) for key, found in samples(records).items()}
    known = {key: count for key, count in drawn.items() if key in p90}
    rate = sum(count * beyond(p90[key], tails[key[:3]], slacks[key[:3]]) for key, count in known.items())
    return rate, sum(known.values()), sum(drawn.values()) - sum(known.values())
