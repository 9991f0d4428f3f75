"""From records to one sentence and an exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from reports.record import OUTCOMES, Record, order

STOPPED = "stopped before its end"
EXIT = {"conformant": 0, "non-conformant": 1, "bad input": 4, "unverified": 5, "partial": 6}


@dataclass(frozen=True)
class Verdict:
    """conformant, non-conformant, partial, unverified or bad input; why; and the exit code."""

    name: str
    sentence: str
    exit_code: int


def judge(
    records: Sequence[Record],
    *,
    owed: Collection[str],
    scope: str,
    stale: Sequence[str] = (),
    incomplete: Sequence[str] = (),
    nothing: str = "",
    allow_partial: bool = False,
) -> Verdict:
    """The verdict of a run.

    `owed`: ids of the promises that the run's scope owes; `stale`: waivers whose check passed; `incomplete`: why
    not all was run that was asked for, which `allow_partial` does not excuse; `nothing`: why no check could run.
    """
    count = Counter(r.outcome for r in records)
    verified = count["passed"] + count["failed"] + count["waived"]
    silent = sorted(set(owed) - {r.promise for r in records}, key=order)

    counts = [f"{count[word]} {word}" for word in OUTCOMES if count[word]]
    parts = [", ".join(counts) or nothing or "no check ran"]
    if silent and records:
        parts.append(f"no check of {', '.join(silent)}")
    told = f"{'; '.join([*parts, *incomplete])} ({scope})"

    if count["failed"]:
        return _verdict("non-conformant", told)
    if stale:
        return _verdict("bad input", f"stale {'; stale '.join(stale)}: passed, so remove it; {told}")
    if not verified:
        return _verdict("unverified", told)
    if count["inconclusive"] or count["unverified"] or silent or incomplete:
        return _verdict("partial", told, 0 if allow_partial and not incomplete else None)
    return _verdict("conformant", told)


def _verdict(name: str, told: str, code: int | None = None) -> Verdict:
    return Verdict(name, f"{name}: {told}", EXIT[name] if code is None else code)
