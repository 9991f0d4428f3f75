"""report.xml: the run as JUnit XML, for CI systems that show it, from records alone.

JUnit knows passed, failure, error and skipped, and what is skipped looks green. So whatever keeps a run from being
conformant is red: a failed check is a failure, one that crashed, is inconclusive or unverified an error. Skipped are
the waived ones, and where a partial run was allowed the inconclusive and unverified ones too. A last case is the
verdict itself, an error whenever the exit code is not 0: a promise without a check has no case of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from reports import summary
from reports.record import Record

# What no XML may hold, escaped or not (XML 1.0, section 2.2), such as the colours of a terminal.
FORBIDDEN = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


def xml(records: Sequence[Record], run: Mapping[str, Any]) -> str:
    """A test suite an area, a test case a check, and the verdict."""
    verdict = run["verdict"]
    allowed = verdict.get("exit_code") == 0
    root = Element("testsuites", name="spiritlevel", time=f"{run.get('seconds', 0):.3f}")
    for area, group in groupby(sorted(records, key=lambda r: r.area), key=lambda r: r.area):
        suite = SubElement(root, "testsuite", name=_legal(area))
        for record in group:
            file, _, name = record.check.partition("::")
            kind = "" if record.outcome == "passed" else _kind(record, allowed=allowed)
            _case(suite, file.removesuffix(".py").replace("/", "."), name, record.seconds, kind, record)
        _count(suite)
    suite = SubElement(root, "testsuite", name="spiritlevel")
    case = SubElement(suite, "testcase", classname="spiritlevel", name="verdict", time="0")
    if not allowed:
        SubElement(case, "error", type=verdict.get("name", ""), message=_legal(verdict["sentence"]))
    _count(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _kind(record: Record, *, allowed: bool) -> str:
    if record.outcome == "failed":
        return "error" if record.crash else "failure"
    return "skipped" if record.outcome == "waived" or allowed else "error"


def _case(suite: Element, file: str, name: str, seconds: float, kind: str, record: Record) -> None:
    case = SubElement(suite, "testcase", classname=_legal(file), name=_legal(name), time=f"{seconds:.3f}")
    if kind:
        why = f"{record.outcome}: {record.promise} {summary.reason(record)}"
        SubElement(case, kind, type=record.outcome, message=_legal(why)).text = _legal(record.message)


def _count(suite: Element) -> None:
    """Say of a test suite what is in it."""
    kinds = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    suite.set("tests", str(len(suite.findall("testcase"))))
    for name, kind in kinds.items():
        suite.set(name, str(len(suite.findall(f"testcase/{kind}"))))
    suite.set("time", f"{sum(float(case.get('time', 0)) for case in suite):.3f}")


def _legal(text: str) -> str:
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
