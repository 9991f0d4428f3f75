"""From records to one sentence and an exit code, as a table."""

import dataclasses
import re

import pytest

from reports import certificate, html, promises, summary, verdict
from reports.pairing import Entry
from reports.record import Record
from reports.upgrade import Certificate, Side
from reports.verdict import STOPPED


def records(outcomes):
    """'passed:A-1 failed:A-2' -> a record each."""
    pairs = [word.split(":") for word in outcomes.split()]
    return [Record(f"{p}-{i}", p, "it MUST", "area", outcome) for i, (outcome, p) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("outcomes", "more", "sentence", "code"),
    [
        ("passed:A-1", {}, "conformant: 1 passed (all)", 0),
        ("passed:A-1 waived:A-1", {}, "conformant: 1 passed, 1 waived (all)", 0),
        ("waived:A-1", {}, "conformant: 1 waived (all)", 0),
        ("passed:A-1 failed:A-1", {}, "non-conformant: 1 passed, 1 failed (all)", 1),
        ("passed:A-1 inconclusive:A-1", {}, "partial: 1 passed, 1 inconclusive (all)", 6),
        ("passed:A-1 unverified:A-1", {}, "partial: 1 passed, 1 unverified (all)", 6),
        ("passed:A-1 unverified:A-1", {"allow_partial": True}, "partial: 1 passed, 1 unverified (all)", 0),
        ("passed:A-1 failed:A-1", {"allow_partial": True}, "non-conformant: 1 passed, 1 failed (all)", 1),
        ("unverified:A-1", {"allow_partial": True}, "unverified: 1 unverified (all)", 5),
        ("inconclusive:A-1", {}, "unverified: 1 inconclusive (all)", 5),
        ("", {}, "unverified: no check ran (all)", 5),
        ("", {"nothing": "no driver", "owed": []}, "unverified: no driver (all)", 5),
        ("passed:A-1", {"owed": ["A-1", "B-1"]}, "partial: 1 passed; no check of B-1 (all)", 6),
        (
            "passed:A-1",
            {"incomplete": ["stopped before its end"]},
            "partial: 1 passed; stopped before its end (all)",
            6,
        ),
        (
            "passed:A-1",
            {"incomplete": ["stopped before its end"], "allow_partial": True},
            "partial: 1 passed; stopped before its end (all)",
            6,
        ),
        ("passed:A-1", {"stale": ["W"]}, "bad input: stale W: passed, so remove it; 1 passed (all)", 4),
        ("failed:A-1", {"stale": ["W"]}, "non-conformant: 1 failed (all)", 1),
        ("passed:A-1 waived:A-1 failed:A-1", {}, "non-conformant: 1 passed, 1 failed, 1 waived (all)", 1),
        ("waived:A-1 unverified:A-1", {}, "partial: 1 waived, 1 unverified (all)", 6),
        ("waived:A-1 unverified:A-1", {"allow_partial": True}, "partial: 1 waived, 1 unverified (all)", 0),
        ("passed:A-1 inconclusive:A-1", {"allow_partial": True}, "partial: 1 passed, 1 inconclusive (all)", 0),
        ("unverified:A-1 inconclusive:A-1", {}, "unverified: 1 inconclusive, 1 unverified (all)", 5),
        ("failed:A-1 unverified:A-1", {"allow_partial": True}, "non-conformant: 1 failed, 1 unverified (all)", 1),
        ("passed:B-1", {"owed": []}, "conformant: 1 passed (all)", 0),
        ("passed:B-1", {"allow_partial": True}, "partial: 1 passed; no check of A-1 (all)", 0),
        ("unverified:A-1", {"owed": ["A-1", "B-1"]}, "unverified: 1 unverified; no check of B-1 (all)", 5),
        ("failed:A-1", {"owed": ["A-1", "B-1"]}, "non-conformant: 1 failed; no check of B-1 (all)", 1),
        ("failed:A-1", {"incomplete": [STOPPED]}, f"non-conformant: 1 failed; {STOPPED} (all)", 1),
        ("", {"incomplete": [STOPPED], "allow_partial": True}, f"unverified: no check ran; {STOPPED} (all)", 5),
        (
            "passed:A-1",
            {"incomplete": [STOPPED, "errors outside the checks"]},
            f"partial: 1 passed; {STOPPED}; errors outside the checks (all)",
            6,
        ),
        (
            "passed:A-1",
            {"stale": ["W"], "allow_partial": True},
            "bad input: stale W: passed, so remove it; 1 passed (all)",
            4,
        ),
        ("passed:A-1", {"stale": ["W", "V"]}, "bad input: stale W; stale V: passed, so remove it; 1 passed (all)", 4),
        ("passed:A-1", {"scope": "attention only"}, "conformant: 1 passed (attention only)", 0),
        (
            "passed:A-1",
            {"owed": ["KV-10", "KV-2", "B-11"]},
            "partial: 1 passed; no check of B-11, KV-2, KV-10 (all)",
            6,
        ),
    ],
)
def test_verdict(outcomes, more, sentence, code):
    found = verdict.judge(records(outcomes), **{"owed": ["A-1"], "scope": "all", **more})

    assert (found.sentence, found.exit_code) == (sentence, code)


ORDER = ["A-2", "A-10", "KV-1", "KV-2", "KV-10"]
WAIVED = {"reason": "known", "owner": "me", "link": ""}
ERODED = {"slack": 2.0, "calibrated": 1.0, "reason": "", "owner": "", "expires": ""}
CALIBRATED = {"slack": 2.0, "healthy": 1.0, "samples": 1, "measured": "", "where": ""}
LISTS = {
    "promises": lambda found: summary.by_promise(found),
    "waivers": lambda found: summary.waivers(found, {}),
    "erosion": lambda found: summary.erosion(found),
    "ledger": lambda found: summary.ledger({"slacks": {r.promise: {"gain": {"any": CALIBRATED}} for r in found}}),
    "missing": lambda found: summary.missing([], {"terms": {"owed": [r.promise for r in found]}}),
    "page": lambda found: [p.id for area in html._areas(list(enumerate(found))).values() for p in area],
    "table": lambda found: promises.table([promises.Promise(r.promise, "", "", "suites/a.py", "") for r in found]),
    "certificate": lambda found: [g.promise for g in certificate.groups(compared(found))],
}


def compared(found):
    """A certificate in which every check fails now."""
    entries = [Entry("now fails", r.check, r.promise, r.statement, "", "", "", 0.0) for r in found]
    return Certificate(Side("a", ()), Side("b", ()), entries=entries)


@pytest.mark.parametrize("listed", LISTS.values(), ids=LISTS)
def test_ids_are_listed_by_area_and_number(listed):
    found = [
        dataclasses.replace(r, waiver=WAIVED, evidence={"slacks": {f"{r.promise}, gain, any": ERODED}})
        for r in records(" ".join(f"passed:{promise}" for promise in sorted(ORDER)))
    ]

    assert list(dict.fromkeys(re.findall(r"\b(?:A|KV)-\d+\b", str(listed(found))))) == ORDER
