"""From records to one sentence and an exit code, as a table."""

import pytest

from reports import verdict
from reports.record import Record
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
    ],
)
def test_verdict(outcomes, more, sentence, code):
    found = verdict.judge(records(outcomes), **{"owed": ["A-1"], "scope": "all", **more})

    assert (found.sentence, found.exit_code) == (sentence, code)
