"""What moves together: many checks of one quantity, each within noise, that all move the same way."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reports.record import Record
from reports.sign_test import sign_test

# All that drifts by chance in one certificate, together, is as rare as this.
ALPHA = 0.01


@dataclass(frozen=True)
class Drift:
    """A quantity that moved one way. ratio: the geometric mean of after ÷ before; more: how many of `moved` grew."""

    promise: str
    quantity: str
    dtype: str
    subject: str
    moved: int
    more: int
    ratio: float
    p: float


def drifts(pairs: Sequence[tuple[Record, Record]]) -> list[Drift]:
    """Quantities that grew, or shrank, in more checks of one subject than chance would have it (sign test, exact)."""
    groups: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for before, after in pairs:
        for key, ratio in _ratios(before, after):
            groups[key].append(ratio)
    found = []
    for key, ratios in groups.items():
        more = sum(r > 0 for r in ratios)
        p = sign_test(more, len(ratios))
        if p * len(groups) < ALPHA:
            found.append(Drift(*key, len(ratios), more, math.exp(sum(ratios) / len(ratios)), p))
    return sorted(found, key=lambda d: -abs(math.log(d.ratio)))


def _ratios(before: Record, after: Record) -> Iterator[tuple[tuple[str, str, str, str], float]]:
    """Logarithms of after ÷ before, of numbers that slacks are calibrated for and that are another now."""
    for b, a in zip(before.judgements, after.judgements, strict=False):
        if b.get("healthy") is None or a.get("healthy") is None or b["quantity"] != a["quantity"]:
            continue
        old, new = float(b["measured"]), float(a["measured"])
        if old > 0 and new > 0 and old != new and math.isfinite(new / old):
            yield (after.promise, str(a["quantity"]), str(a.get("dtype", "")), after.subject), math.log(new / old)
