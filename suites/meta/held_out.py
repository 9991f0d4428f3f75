"""Do slacks hold for numbers that they were not derived from? `python -m suites.meta.held_out`.

Each table of fixtures/calibration/ is held in turn to the slacks that follow from all the others, as the next machine's
numbers will be held to those of today. No shape of a tail is assumed, as it is by `suites.meta.calibrate --state`. Left
out is a slack of which the others have fewer samples than the table itself. Exits with 1 where the others allow less.
"""

from __future__ import annotations

import sys

from tabulate import tabulate

from fixtures.statistics import binomial
from suites.meta.allowance import derived
from suites.meta.tables import counted, every_row, slack_of


def held_out() -> tuple[list[tuple[str, str, float, float, str]], int]:
    """Rows of tables whose largest number the other tables do not allow, and how many numbers were asked about.

    Each is (table, promise with quantity and dtype, measured, allowed, check).
    """
    rows = every_row()
    beyond, asked = [], 0
    for name in dict.fromkeys(table for table, _ in rows):
        mine, others = ([pair for pair in rows if (pair[0] == name) is own] for own in (True, False))
        allowed, known, count = derived(others), counted(others), counted(mine)
        for _, row in mine:
            key = slack_of(row)
            if known[key] < count[key]:
                continue
            asked += int(row["samples"])
            if float(row["maximum"]) > allowed[key]:
                beyond.append((name, " ".join(key), float(row["maximum"]), allowed[key], row["where"]))
    return beyond, asked


def main() -> int:
    beyond, asked = held_out()
    print(tabulate(beyond, ("table", "slack", "measured", "allowed by the others", "check")))
    share = binomial(len(beyond), asked)
    print(f"{len(beyond)} of {asked:,} numbers lie beyond: {share.low:.1g} to {share.high:.1g} of them, at 95 %")
    return int(bool(beyond))


if __name__ == "__main__":
    sys.exit(main())
