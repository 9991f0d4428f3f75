"""What became of each claim: a row a claim, from records alone.

A run's facts (`run.json`) hold what was claimed. `claims` is a list: `{"name", "says", "claimed", "unit"}` for each
`[[claim]]` of the deployment file, and `{"name", "says", "kind", "promises"}` for each name in its `[claims]` lists and
for its context. The record of a check that measured a `[[claim]]` says so: its parameter `claim` is the name, and its
evidence `claim` holds `measured`, perhaps an `interval`, the `unit`, and what would have been `detectable`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from reports.record import OUTCOMES, Record

WORDS = {
    "failed": "REFUTED",
    "inconclusive": "INCONCLUSIVE",
    "unverified": "NOT TESTABLE HERE",
    "waived": "CONFIRMED",
    "passed": "CONFIRMED",
}
# No check that would test it was among those that were asked for.
NOT_ASKED = "NOT ASKED"
HEADER = ("claim", "claimed", "measured", "unit", "word", "would have been detectable", "evidence")


class Row(NamedTuple):
    """A claim as the deployer says it, its bound and what was measured, both in `unit`, and the word that follows.

    word: CONFIRMED, REFUTED, INCONCLUSIVE, NOT TESTABLE HERE, or NOT ASKED where no record is about it. evidence: node
    ids of the records behind it, those that decide first. detectable: the smallest departure from the bound that would
    have been seen. Where there is no number, measured says what the checks came to, and unit and detectable are empty.
    """

    claim: str
    claimed: str
    measured: str
    unit: str
    word: str
    evidence: tuple[str, ...]
    detectable: str


def rows(records: Sequence[Record], run: Mapping[str, Any]) -> list[Row]:
    """A row for each claim of a run, in the order of its deployment file; none where nothing is claimed.

    `run`: what run.json holds. Nothing is read, and nothing but records decides a word.
    """
    return [_row(claim, [r for r in records if _tests(r, claim)]) for claim in run.get("claims", ())]


def _tests(record: Record, claim: Mapping[str, Any]) -> bool:
    """Whether a record is evidence of a claim: its own check, one of its promises, or one of a subject of its name."""
    if "kind" not in claim:
        return record.parameters.get("claim") == str(claim["name"])
    if "claim" in record.parameters:
        return False
    if claim["kind"] == "devices":
        return record.device == str(claim["name"])
    return record.promise in set(claim["promises"]) or str(claim["name"]) in record.subject.split(", ")


def _row(claim: Mapping[str, Any], about: Sequence[Record]) -> Row:
    order = list(WORDS)
    deciding = sorted(about, key=lambda r: order.index(r.outcome))
    told: Mapping[str, Any] = next((found for r in deciding if (found := r.evidence.get("claim"))), {})
    outcome = deciding[0].outcome if deciding else ""
    word = WORDS.get(outcome, NOT_ASKED)
    if "kind" not in claim and outcome == "waived":
        word = WORDS["failed"]  # it is excused, and untrue all the same
    elif "kind" not in claim and outcome == "failed" and deciding[0].crash:
        word = WORDS["inconclusive"]  # nothing was measured
    return Row(
        str(claim["says"]),
        str(claim.get("claimed", "")),
        _measured(told) if told else _counted(about) if "kind" in claim else "",
        str(claim.get("unit", "")),
        word,
        tuple(r.check for r in deciding),
        str(told.get("detectable", "")),
    )


def _measured(told: Mapping[str, Any]) -> str:
    found, interval = told["measured"], told.get("interval")
    shown = found if isinstance(found, str) else f"{found:,.4g}"
    return f"{shown} ({' … '.join(f'{float(x):,.4g}' for x in interval)})" if interval else shown


def _counted(about: Sequence[Record]) -> str:
    count = Counter(r.outcome for r in about)
    return ", ".join(f"{count[word]} {word}" for word in OUTCOMES if count[word])


def cells(found: Sequence[Row]) -> list[tuple[str, ...]]:
    """Rows as a report's table has them, under `HEADER`: of the evidence the check that decides, and how many more."""
    return [(*row[:5], row.detectable, _evidence(row.evidence)) for row in found]


def _evidence(checks: Sequence[str]) -> str:
    more = f" and {len(checks) - 1} more" * (len(checks) > 1)
    return f"{checks[0].removeprefix('suites/')}{more}" if checks else ""
