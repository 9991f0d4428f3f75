"""What became of loss or time with length, as a picture and a table: an SVG beside report.md, from records alone.

A record that measured one says so in its evidence: `curve`, with the figure that it belongs to, the name of its line,
the unit, points `[length, measured]` and, where there is one, the trained length; and `pass keys`, found of asked by
length and depth.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from tabulate import tabulate

from reports.record import Record

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 40, 52
# Told apart by most eyes that do not tell red from green (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "currentColor", "#8C6D31", "#7F7F7F")
FAINT = 'stroke="currentColor" stroke-opacity="0.15"'
LABEL = 14  # pixels that a line's name needs
COLUMNS = 8

Lines = dict[str, Mapping[str, Any]]


def section(records: Sequence[Record]) -> tuple[list[str], dict[str, str]]:
    """Blocks of Markdown, none where nothing was measured, and the pictures that they show: name of a file -> SVG."""
    blocks, pictures = [], {}
    for figure, lines in figures(records).items():
        name = f"{re.sub(r'[^a-z0-9]+', '-', figure.lower())[:100]}.svg"
        pictures[name] = svg(figure, lines)
        blocks += [f"![By length: {figure}]({name})", table(lines)]
    blocks += [keys(r) for r in records if r.evidence.get("pass keys")]
    return (["## By length of context", *blocks] if blocks else []), pictures


def figures(records: Sequence[Record]) -> dict[str, Lines]:
    """figure -> line -> curve; where one was measured on two devices, its name says on which.

    Points that are not finite cannot be drawn; the check that measured them has failed.
    """
    found: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = defaultdict(dict)
    for record in records:
        curve = dict(record.evidence.get("curve") or {})
        curve["points"] = [(x, y) for x, y in curve.get("points", ()) if math.isfinite(float(y))]
        key = (str(curve.get("line")), record.device)
        if curve["points"] and len(curve["points"]) >= len(found[curve["figure"]].get(key, {"points": ()})["points"]):
            found[curve["figure"]][key] = curve
    several = {device for lines in found.values() for _, device in lines}
    return {
        figure: {f"{line}, {device}" if len(several) > 1 else line: curve for (line, device), curve in lines.items()}
        for figure, lines in found.items()
    }


def table(lines: Lines) -> str:
    """What was measured by line and length, at most eight lengths."""
    lengths = sorted({float(x) for curve in lines.values() for x, _ in curve["points"]})
    step = -(-len(lengths) // COLUMNS)
    shown = lengths[::-step][::-1]
    rows = []
    for name, curve in lines.items():
        at = {float(x): float(y) for x, y in curve["points"]}
        rows.append([name, *(f"{at[x]:.3f}" if x in at else "" for x in shown)])
    unit = next(iter(lines.values()))["unit"]
    return tabulate(rows, (unit, *(f"{x:,.0f}" for x in shown)), tablefmt="github", disable_numparse=True)


def keys(record: Record) -> str:
    """Pass keys found of asked, by length and depth."""
    found: Mapping[str, Mapping[str, str]] = record.evidence["pass keys"]
    depths = list(next(iter(found.values())))
    rows = [(f"{int(length):,}", *(hits[d] for d in depths)) for length, hits in found.items()]
    head = (f"pass keys, {record.subject} on {record.device}", *(f"depth {d}" for d in depths))
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def svg(title: str, lines: Lines) -> str:
    """What was measured over length, on a logarithmic axis, each line named where it ends, in the ink of its page."""
    points = [(float(x), float(y)) for curve in lines.values() for x, y in curve["points"]]
    bottom, top = (f(y for _, y in points) for f in (min, max))
    curve = next(iter(lines.values()))
    if "trained" not in curve:  # a time is a share of itself: half as high is half as long
        bottom = 0.0
    step = _step(top - bottom)
    low, high = step * math.floor(bottom / step), step * (math.floor(top / step) + 1)
    first, last = (math.log2(f(x for x, _ in points)) for f in (min, max))
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log2(x) - first) / (last - first) if last > first else 0.5
        return LEFT + across * share, TOP + down * (high - y) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12" class="chart">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff" class="paper"/>',
        _text(LEFT, 22, f"{title}: {curve['unit']} by length of context", size=14),
        _text(LEFT + across / 2, HEIGHT - 10, "tokens before, on a logarithmic scale", anchor="middle"),
    ]
    for tick in range(round((high - low) / step) + 1):
        at = place(2**first, low + tick * step)[1]
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + across}" y1="{at:.1f}" y2="{at:.1f}" {FAINT}/>')
        parts.append(_text(LEFT - 8, at + 4, f"{low + tick * step:g}", anchor="end"))
    for power in range(math.ceil(first), math.floor(last) + 1):
        at = place(2.0**power, low)[0]
        parts.append(_text(at, HEIGHT - BOTTOM + 18, f"{2**power:,}", anchor="middle"))
    if first <= math.log2(curve.get("trained", 0.5)) <= last:
        at = place(curve["trained"], low)[0]
        ends = f'x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
        parts.append(f'<line {ends} stroke="currentColor" stroke-dasharray="4 4"/>')
        parts.append(_text(at + 5, TOP + 12, "trained"))
    last_points = [place(*map(float, c["points"][-1])) for c in lines.values()]
    names = _apart([y for _, y in last_points])
    for number, (name, found) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        dashes = ' stroke-dasharray="6 3"' if number >= len(COLOURS) else ""
        along = [place(float(a), float(b)) for a, b in found["points"]]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in along)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        if len(along) <= COLUMNS:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in along]
        (x, y), beside = last_points[number], LEFT + across + 12
        to = f"M{x + 2:.1f} {y:.1f} L{beside - 10} {y:.1f} L{beside} {names[number]:.1f}"
        parts.append(f'<path d="{to}" stroke="{colour}" stroke-opacity="0.6" fill="none"/>')
        parts.append(_text(beside + 3, names[number] + 4, name))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _apart(heights: Sequence[float]) -> list[float]:
    """Where to write names so that none covers another: as near to their lines' ends as there is room."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for before, after in pairwise(order):
        placed[after] = max(placed[after], placed[before] + LABEL)
    placed[order[-1]] = min(placed[order[-1]], HEIGHT - BOTTOM)
    for after, before in pairwise(reversed(order)):
        placed[before] = min(placed[before], placed[after] - LABEL)
    return placed


def _step(span: float) -> float:
    """The distance of two lines of a grid that has four to eight of them: 1, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(span, 1e-9) / 4))
    return next(power * factor for factor in (1, 2.5, 5, 10) if span <= 8 * power * factor)


def _text(x: float, y: float, said: str, *, anchor: str = "start", size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} fill="currentColor">{escape(said)}</text>'
