"""Do slacks hold for numbers that they were not derived from? `python -m suites.meta.held_out`.

Each table of fixtures/calibration/ is held in turn to the slacks that follow from all the others, as the next machine's
numbers will be held to those of today. No shape of a tail is assumed, as it is by `suites.meta.calibrate --state`. Left
out is a slack of which the others have fewer samples than the table itself. Exits with 1 where the others allow less.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from tabulate import tabulate

from fixtures.statistics import binomial
from suites.meta.allowance import derived
from suites.meta.tables import counted, every_row, slack_of


class Row(NamedTuple):
    """A row of a table: of a promise's quantity and dtype, what one subject measured at most, and how many numbers."""

    table: str
    slack: str
    measured: float
    allowed: float
    check: str
    numbers: int

    @property
    def is_beyond(self) -> bool:
        """Whether the other tables do not allow its largest number; a row does not say how many of its numbers."""
        return self.measured > self.allowed


def held_out() -> list[Row]:
    """Every row that was asked about."""
    rows = every_row()
    found = []
    for name in dict.fromkeys(table for table, _ in rows):
        mine, others = ([pair for pair in rows if (pair[0] == name) is own] for own in (True, False))
        allowed, known, count = derived(others), counted(others), counted(mine)
        for _, row in mine:
            key = slack_of(row)
            if known[key] < count[key]:
                continue
            told = " ".join(key), float(row["maximum"]), allowed[key], row["where"], int(row["samples"])
            found.append(Row(name, *told))
    return found


def main() -> int:
    asked = held_out()
    beyond, numbers = [row for row in asked if row.is_beyond], sum(row.numbers for row in asked)
    print(tabulate(beyond, ("table", "slack", "measured", "allowed by the others", "check", "numbers")))
    share = binomial(len(beyond), len(asked))
    print(
        f"{len(beyond)} of {len(asked):,} rows, of {numbers:,} numbers, reach beyond: {share.low:.1g} to "
        f"{share.high:.1g} of rows, at 95 %"
    )
    return int(bool(beyond))


if __name__ == "__main__":
    sys.exit(main())
