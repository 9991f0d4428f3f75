"""report.html: one file that is read offline and without scripts, from records alone.

Everything that comes from a run is escaped where it is put in (Jinja2, autoescape); templates/base.html holds what
another page needs too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reports import curves, figures, summary
from reports.record import OUTCOMES, Numbered, Record, order

TEMPLATES = Path(__file__).with_name("templates")
SYMBOLS = {
    "passed": "✓",
    "failed": "✗",
    "waived": "–",
    "inconclusive": "≈",
    "unverified": "○",
    "conformant": "✓",
    "non-conformant": "✗",
    "partial": "≈",
    "bad input": "✗",
}


@dataclass(frozen=True)
class Promise:
    """A promise and its checks, each with its line in records.jsonl."""

    id: str
    statement: str
    checks: Sequence[tuple[int, Record]]
    counts: Sequence[tuple[str, int]]
    most: str
    seconds: float


def page(
    records: Sequence[Record],
    run: Mapping[str, Any],
    environment: Mapping[str, Any],
    claims: Iterable[Any] = (),
) -> str:
    """A run as a page. claims: rows of claim, claimed, measured, unit, word, evidence (node ids) and detectable."""
    numbered, sentence = list(enumerate(records, 1)), run["verdict"]["sentence"]
    return render(
        "report.html",
        name=sentence.split(":")[0],
        sentence=sentence,
        run=run,
        facts=[(name, told) for name, told in summary.facts(run, environment) if told],
        missing=summary.missing(records, run),
        unverified=[(n, r) for n, r in numbered if r.outcome == "unverified"],
        bad=[(n, r) for n, r in numbered if r.outcome in ("failed", "inconclusive")],
        waivers=summary.excused(numbered),
        erosion=(summary.EROSION, summary.erosion(records), summary.ERODED),
        ledger=(summary.LEDGER, summary.ledger(run)),
        claims=list(claims),
        lines={r.check: n for n, r in numbered},
        areas=_areas(numbered),
        headroom=figures.headroom(numbered),
        maps=figures.maps(numbered),
        agreement=figures.agreement(numbered),
        curves={name: curves.svg(name, lines) for name, lines in curves.figures(records).items()},
        drawn=_drawn(numbered),
        memory=figures.memory(numbered),
        reproduce=summary.reproduce(run, environment),
    )


def _drawn(records: Numbered) -> dict[str, list[int]]:
    """Which lines of records.jsonl hold each figure's curves."""
    lines: dict[str, list[int]] = defaultdict(list)
    for line, record in records:
        if curve := record.evidence.get("curve"):
            lines[curve["figure"]].append(line)
    return lines


def render(template: str, **what: Any) -> str:
    """A page of `templates/`, everything in it escaped that is not a template's own."""
    return _jinja().get_template(template).render(**what)


@cache
def _jinja() -> Environment:
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {
        "short": summary.short,
        "reason": summary.reason,
        "shown": shown,
        "count": "{:,}".format,
        "ratio": figures.ratio,
        "deciding": deciding,
    }
    jinja.globals["symbols"] = SYMBOLS
    return jinja


def deciding(record: Record) -> Mapping[str, Any]:
    """The judgement that decided how a check ended: the first that did not pass, or else the tightest."""
    bad = (j for j in record.judgements if j.get("outcome", "passed") != "passed")
    return next(bad, None) or record.tightest or next(iter(record.judgements), {})


def shown(value: Any) -> str:
    """A number to four digits, a text in one short line."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return summary.first_line(str(value), 40)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _areas(records: Numbered) -> dict[str, list[Promise]]:
    """area -> its promises in the order of their ids; one that is held in several areas stands in the first."""
    groups: dict[str, list[tuple[int, Record]]] = defaultdict(list)
    for line, record in records:
        groups[record.promise].append((line, record))
    areas: dict[str, list[Promise]] = {area: [] for area in sorted({group[0][1].area for group in groups.values()})}
    for name in sorted(groups, key=order):
        areas[groups[name][0][1].area].append(_promise(name, groups[name]))
    return areas


def _promise(name: str, checks: Sequence[tuple[int, Record]]) -> Promise:
    count = Counter(r.outcome for _, r in checks)
    found = [h for _, r in checks if (h := r.headroom) is not None]
    return Promise(
        name,
        checks[0][1].statement,
        checks,
        [(word, count[word]) for word in OUTCOMES if count[word]],
        figures.ratio(max(found, default=None)),
        sum(r.seconds for _, r in checks),
    )
