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
from scipy.special import stdtrit

from reports.sign_test import sign_test

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
    text's tokens, both clustered by document.
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
    flipped = (old["choice"] != new["choice"]) | (np.isnan(old["lead"]) != np.isnan(new["lead"]))
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
        p=sign_test(lost, lost + won),
        right=_share(new["right"] * 1.0 - old["right"], before["documents"]),
        logp=_clustered(new["logp"].astype(np.float64) - old["logp"], before["documents"]),
    )


def _columns(kept: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    return {name: np.frombuffer(zlib.decompress(base64.b64decode(kept[name])), kind) for name, kind in COLUMNS.items()}


def _share(changes: NDArray[np.float64], documents: list[int]) -> Range:
    """The mean of changes of -1, 0 and 1. Where none changed the width would be 0: the rule of three bounds it.

    (Hanley and Lippman-Hand 1983, JAMA 249:1743.)
    """
    bound = 3 / len(changes)
    return _clustered(changes, documents) if changes.any() else Range(0.0, -bound, bound)


def _clustered(values: NDArray[np.float64], documents: list[int]) -> Range:
    """Their mean; documents are the unit, of unequal size (Cochran 1977, Sampling Techniques, section 9A.2)."""
    mean, sizes, count = float(values.mean()), np.array(documents), len(documents)
    if count < 2:
        return Range(mean, -math.inf, math.inf)
    totals = np.add.reduceat(values, np.cumsum(sizes) - sizes)
    se = math.sqrt(float(np.square(totals - mean * sizes).sum()) * count / (count - 1)) / len(values)
    half = float(stdtrit(count - 1, 0.975)) * se
    return Range(mean, mean - half, mean + half)
