"""Is the suite quiet on a healthy stack? `python -m suites.meta.silence --seeds 20 --first 1000`.

Runs the suite as it judges, once a seed, all in one process, and prints every alarm. The first run is whole; the others
leave out the served model, which no seed changes. What follows `--` goes to pytest. Seeds that no slack was derived
from are the ones to ask; with `--runs` their records stay, for `python -m suites.meta.calibrate --from`. Exits with 1
where anything failed or stayed inconclusive.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from reports.summary import reason, short
from suites.meta import seeds

ALARMS = ("failed", "inconclusive", "unverified")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1000, help="the first seed")
    parser.add_argument("--runs", type=Path, help="keep the runs here, and read those that are there already")
    parser.add_argument("ask", nargs="*", help="what goes to pytest")
    chosen = parser.parse_args(arguments)

    judged, alarms, start = 0, [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(chosen.first, chosen.first + chosen.seeds):
            report = (chosen.runs or Path(folder)) / str(seed)
            records = seeds.records(report, seed, chosen.ask, whole=seed == chosen.first)
            judged += len(records)
            alarms += [(seed, r.outcome, short(r.check), reason(r)) for r in records if r.outcome in ALARMS]
    print(tabulate(alarms, ("seed", "outcome", "check", "why")) if alarms else "no alarm")
    print(
        f"{judged:,} checks judged over {chosen.seeds} seeds in {time.monotonic() - start:,.0f} s: {len(alarms)} alarms"
    )
    return int(bool(alarms))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
