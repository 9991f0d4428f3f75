"""Checks of two runs, paired by node id: what became of each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from reports.record import Record
from reports.summary import first_line

# What becomes of a check, the worst first, and what it makes of a verdict: see compare.py.
REGRESSION, CHANGED, SAFE = "regression", "changed", "safe"
KINDS = {
    "now fails": REGRESSION,
    "vanished": REGRESSION,
    "no longer verified": REGRESSION,
    "fails in both": CHANGED,
    "verified in neither": CHANGED,
    "now waived": CHANGED,
    "moved within the allowance": CHANGED,
    "now passes": CHANGED,
    "appeared": CHANGED,
    "waived in both": SAFE,
    "within the noise floor": SAFE,
    "bitwise equal": SAFE,
}
# Healthy stacks take half of a calibrated allowance at most: it is twice the largest they have shown, rounded up.
HEALTHY = 0.5
CHECKSUM = re.compile(r"\b[a-z0-9]{32,}\b")
UNKNOWN = ("unverified", "inconclusive")


@dataclass(frozen=True)
class Entry:
    """One check of either run. told: what moved, or why; moved: by how much of the allowance, where a number did."""

    kind: str
    check: str
    promise: str
    statement: str
    subject: str
    device: str
    told: str = ""
    moved: float = 0.0


def pair(before: Sequence[Record], after: Sequence[Record]) -> list[Entry]:
    """An entry for every check of both runs. A check whose promise says something else now vanished and appeared."""
    old, new = _by_name(before), _by_name(after)
    found = [_entry("vanished", r, _why_gone(r, new)) for key, r in old.items() if key not in new]
    found += [_appeared(r) for key, r in new.items() if key not in old]
    return found + [_both(*records) for records in both(before, after)]


def both(before: Sequence[Record], after: Sequence[Record]) -> list[tuple[Record, Record]]:
    """The checks that are in both runs, and hold the same promise in the same words."""
    old, new = _by_name(before), _by_name(after)
    return [(r, new[key]) for key, r in old.items() if key in new]


def _by_name(records: Sequence[Record]) -> dict[tuple[str, str, str], Record]:
    return {(r.check, r.promise, r.statement): r for r in records}


def _entry(kind: str, record: Record, told: str = "", moved: float = 0.0) -> Entry:
    r = record
    return Entry(kind, r.check, r.promise, r.statement, r.subject, r.device, told, moved)


def _why_gone(record: Record, new: Mapping[tuple[str, str, str], Record]) -> str:
    said = [statement for check, promise, statement in new if (check, promise) == (record.check, record.promise)]
    return f"the promise says now: {said[0]}" if said else f"it {record.outcome} before"


def _appeared(record: Record) -> Entry:
    """A check that is new and fails, fails now."""
    kind = "now fails" if record.outcome == "failed" else "appeared"
    return _entry(kind, record, "" if record.outcome == "passed" else f"{record.outcome}: {_reason(record)}")


def _both(old: Record, new: Record) -> Entry:
    if new.outcome == "failed":
        kind = "fails in both" if old.outcome == "failed" else "now fails"
        return _entry(kind, new, _reason(new))
    if new.outcome in UNKNOWN:
        kind = "verified in neither" if old.outcome in (*UNKNOWN, "failed") else "no longer verified"
        return _entry(kind, new, f"{new.outcome}: {_reason(new)}")
    if new.outcome == "waived":
        kind = "waived in both" if old.outcome == "waived" else "now waived"
        return _entry(kind, new, _reason(new))
    if old.outcome != "passed":
        return _entry("now passes", new, f"{old.outcome} before: {_reason(old)}")
    return _passes(old, new)


def _passes(old: Record, new: Record) -> Entry:
    """Both pass: equal in every bit and number, no farther out than noise, or moved."""
    beyond = [_told(b, a) for b, a in _judgements(old, new) if _is_beyond(b, a)]
    moved, told = _farthest(old, new)
    if beyond:
        return _entry("moved within the allowance", new, "; ".join(beyond), moved)
    return _entry("within the noise floor", new, told, moved) if _differ(old, new) else _entry("bitwise equal", new)


def _judgements(old: Record, new: Record) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return list(zip_longest(old.judgements, new.judgements, fillvalue={}))


def _differ(old: Record, new: Record) -> bool:
    """Whether an output's checksum, what was said of a token, or a number that was measured is another."""
    kept = any(
        name in old.evidence and name in new.evidence and old.evidence[name] != new.evidence[name]
        for name in ("bits", "said")
    )
    return kept or any(_measured(b) != _measured(a) for b, a in _judgements(old, new))


def _measured(judgement: Mapping[str, Any]) -> Any:
    """What was measured, without the checksums that a compiler names its graphs by: they change with its version."""
    found = judgement.get("measured")
    return CHECKSUM.sub("…", found) if isinstance(found, str) else found


def _is_beyond(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a number that was measured moved, and not within noise.

    Noise is what takes no more of its allowance than before, or than healthy stacks do over many seeds; an interval's
    estimate that stays within the interval of before; and nothing at all where an answer is exact.
    """
    if before.get("quantity") != after.get("quantity"):
        return True
    if _measured(before) == _measured(after) or after.get("headroom") is None:
        return bool(_measured(before) != _measured(after))
    limit = max(float(before.get("headroom") or 0), 0 if after.get("healthy") is None else HEALTHY)
    low, high = map(float, before.get("interval") or (math.inf, -math.inf))
    return not (float(after["headroom"]) <= limit or low <= float(after["measured"]) <= high)


def _farthest(old: Record, new: Record) -> tuple[float, str]:
    """The judgement whose share of its allowance changed most: by how much, and in words."""
    pairs = [(b, a) for b, a in _judgements(old, new) if None not in (b.get("headroom"), a.get("headroom"))]
    moved = [(float(a["headroom"]) - float(b["headroom"]), _told(b, a)) for b, a in pairs if b != a]
    return max(moved, key=lambda pair: abs(pair[0]), default=(0.0, ""))


def _told(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """A judgement of both runs in words."""
    if before.get("quantity") != after.get("quantity"):
        return f"judged was {before.get('quantity', 'nothing')}, now {after.get('quantity', 'nothing')}"
    shares = [f" ({float(j['headroom']):.2f} of what is allowed)" if j.get("headroom") else "" for j in (before, after)]
    return (
        f"{after['quantity']} {_shown(before['measured'])}{shares[0]} → {_shown(after['measured'])}{shares[1]} "
        f"{after.get('unit', '')}"
    ).strip()


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else first_line(str(value), 60)


def _reason(record: Record) -> str:
    """Why a check did not pass, in one line."""
    lines = [line for line in record.message.splitlines() if line and not line.startswith(f"{record.promise}: ")]
    return lines[0] if lines else ""
