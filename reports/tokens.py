"""Two runs, token by token: which first choices flipped, whether noise explains it, and what was lost by it."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, t

# What a record keeps of each token (fixtures/tokens.py), and as which type.
COLUMNS = {"choice": np.int32, "right": np.bool_, "lead": np.float16, "logp": np.float32}


class Range(NamedTuple):
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Flips:
    """What became of the tokens of one check.

    largest: the largest lead, in nats, that a first choice had before it flipped or has since; unexplained: flips at a
    lead above `noise`; lost and won: tokens of the text that were ranked first only before, only after; p: McNemar's
    exact test of the two; right: the change in the share that is ranked first; logp: that in the log-probability of the
    text's tokens, clustered by document.
    """

    check: str
    what: str
    tokens: int
    flips: int
    unexplained: int
    largest: float
    noise: float
    lost: int
    won: int
    p: float
    right: Range
    logp: Range


def compare(check: str, what: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Flips | None:
    """Both runs' tokens of a check; None where they were not asked about the same text."""
    if (before["text"], before["documents"]) != (after["text"], after["documents"]):
        return None
    old, new = _columns(before), _columns(after)
    flipped = old["choice"] != new["choice"]
    leads = np.maximum(old["lead"], new["lead"])[flipped].astype(np.float64)
    noise = max(float(before["noise"]), float(after["noise"]))
    lost, won = int((old["right"] & ~new["right"]).sum()), int((~old["right"] & new["right"]).sum())
    count = len(flipped)
    return Flips(
        check=check,
        what=what,
        tokens=count,
        flips=int(flipped.sum()),
        unexplained=int((~(leads <= noise)).sum()),  # NaN is no lead that noise explains
        largest=float(leads.max()) if len(leads) else 0.0,
        noise=noise,
        lost=lost,
        won=won,
        p=float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0,
        right=_change(lost, won, count),
        logp=_clustered(new["logp"].astype(np.float64) - old["logp"], before["documents"]),
    )


def _columns(kept: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    return {name: np.frombuffer(zlib.decompress(base64.b64decode(kept[name])), kind) for name, kind in COLUMNS.items()}


def _change(lost: int, won: int, count: int) -> Range:
    """(won − lost) ÷ count, and its exact interval given how many differ (Clopper and Pearson 1934, Biometrika 26:404).

    Where none differs the width would be 0: the rule of three bounds it (Hanley and Lippman-Hand 1983, JAMA 249:1743).
    """
    differ = lost + won
    if not differ:
        return Range(0.0, -min(1.0, 3 / count), min(1.0, 3 / count))
    share = binomtest(won, differ).proportion_ci(0.95, "exact")
    low, high = ((2 * float(x) - 1) * differ / count for x in (share.low, share.high))
    return Range((won - lost) / count, low, high)


def _clustered(values: NDArray[np.float64], documents: list[int]) -> Range:
    """Their mean; documents are the unit, of unequal size (Cochran 1977, Sampling Techniques, section 9A.2)."""
    mean, sizes, count = float(values.mean()), np.array(documents), len(documents)
    if count < 2:
        return Range(mean, -math.inf, math.inf)
    totals = np.add.reduceat(values, np.cumsum(sizes) - sizes)
    se = math.sqrt(float(np.square(totals - mean * sizes).sum()) * count / (count - 1)) / len(values)
    half = float(t.ppf(0.975, count - 1)) * se
    return Range(mean, mean - half, mean + half)
