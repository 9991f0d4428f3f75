"""What a page shows as pictures, drawn from records alone: positions on an axis, in per cent of its width.

A picture is a table whose cells hold a mark or a track, so that it is read on any width, without colour and aloud; each
row and cell names the record that it comes from by its line in records.jsonl.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reports.record import SEVERITY, Numbered, Record, order

# Which promises are shown as a map, and what its rows and its columns are.
MAPS = {"ATTN-1": ("attention", "problem"), "ATTN-2": ("attention", "case"), "KV-1": ("kv_cache", "case")}
WORDS = {"attention": "backend", "kv_cache": "cache", "problem": "shape", "case": "model"}


@dataclass(frozen=True)
class Track:
    """A range with a mark on it and limits, each in per cent of the axis; `over`: the mark lies beyond its end."""

    low: float
    high: float
    at: float
    limits: tuple[float, ...] = ()
    over: bool = False


@dataclass(frozen=True)
class Row:
    """A name, a track, what it shows in words, and the line of the record that it comes from."""

    name: str
    track: Track
    told: str
    line: int
    outcome: str = "passed"


@dataclass(frozen=True)
class Cell:
    """Measured ÷ allowed in words, how strongly it is shown (0 to 1), and the record; empty where nothing was tried."""

    told: str = ""
    strength: float = 0.0
    line: int = 0
    outcome: str = ""
    count: int = 0


@dataclass(frozen=True)
class Map:
    """A table of cells: what it is of, in words, the names of its columns, and of each row its name and its cells."""

    promise: str
    statement: str
    of: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def headroom(records: Numbered) -> list[Row]:
    """For each promise the median and the largest measured ÷ allowed of its checks, on an axis from 0 to 1.25.

    Its outcome is the worst of all of its checks, those without a ratio too.
    """
    worst: dict[str, str] = {}
    groups: dict[str, list[tuple[float, int, Record]]] = defaultdict(list)
    for line, record in records:
        worst[record.promise] = max(worst.get(record.promise, "passed"), record.outcome, key=SEVERITY.index)
        if (share := record.headroom) is not None:
            groups[record.promise].append((share, line, record))
    rows = []
    for promise in sorted(groups, key=order):
        shares = sorted(share for share, _, _ in groups[promise])
        most, line, _ = max(groups[promise], key=lambda g: g[0])
        limits = _share(1), _share(shares[len(shares) // 2])
        track = Track(_share(shares[0]), _share(most), _share(most), limits, over=most > AXIS)
        rows.append(Row(promise, track, ratio(most), line, worst[promise]))
    return rows


AXIS = 1.25


def _share(value: float) -> float:
    return 100 * min(max(value, 0.0), AXIS) / AXIS


def ratio(headroom: float | str | None) -> str:
    """Measured ÷ allowed in words."""
    share = None if headroom is None else float(headroom)  # a record has no infinity but as a word
    return "exact" if share is None else f"{share:,.2f}" if math.isfinite(share) else "∞"


def maps(records: Numbered) -> list[Map]:
    """Measured ÷ allowed of each backend and dtype on each shape, the largest where there are several checks."""
    return [found for promise, (row, column) in MAPS.items() if (found := _map(records, promise, row, column))]


def _map(records: Numbered, promise: str, row: str, column: str) -> Map | None:
    found = [(n, r) for n, r in records if r.promise == promise and {row, column, "dtype"} <= set(r.parameters)]
    several = len({r.device for _, r in found}) > 1
    groups: dict[tuple[str, str], list[tuple[int, Record]]] = defaultdict(list)
    for line, record in found:
        about = record.parameters
        name = f"{about[row]} {about['dtype']}{f' {record.device}' * several}"
        groups[name, about[column]].append((line, record))
    names, columns = (sorted({key[i] for key in groups}) for i in (0, 1))
    if len(groups) < 2:
        return None
    rows = [(name, [_cell(groups.get((name, c), [])) for c in columns]) for name in names]
    return Map(promise, found[0][1].statement, f"{WORDS[row]} × dtype × {WORDS[column]}", columns, rows)


def _cell(found: Sequence[tuple[int, Record]]) -> Cell:
    if not found:
        return Cell()
    line, worst = max(found, key=lambda f: (SEVERITY.index(f[1].outcome), f[1].headroom or 0.0))
    most = worst.headroom
    # What failed exactly, or was not finite, is beyond any ratio.
    told = worst.outcome if worst.outcome != "passed" and (most or 0.0) <= 1 else ratio(most)
    return Cell(told, min(1.0, most or 0.0), line, worst.outcome, len(found))


# Metrics of agreement that are shown as intervals: name -> whether their axis is logarithmic.
METRICS = {"mean KL divergence": True, "top-1 agreement": False}


def agreement(records: Numbered) -> list[tuple[str, list[Row]]]:
    """metric -> quantizers with their interval and margin, the most like the released model first."""
    found = [(n, r) for n, r in records if "agreement" in r.evidence and "stretch" not in r.parameters]
    return [(metric, rows) for metric, log in METRICS.items() if (rows := _intervals(found, metric, log=log))]


def _intervals(records: Numbered, metric: str, *, log: bool) -> list[Row]:
    told = []
    for line, record in records:
        interval = record.evidence["agreement"].get(metric)
        if interval and all(math.isfinite(float(x)) for x in interval):
            held = next((j for j in record.judgements if j.get("quantity") == metric), {})
            margins = [float(held[k]) for k in ("low", "high") if held.get(k) is not None]
            told.append((line, record, [float(x) for x in interval], margins, str(held.get("allowed", ""))))
    if not told:
        return []
    place = _axis([x for _, _, interval, margins, _ in told for x in (*interval, *margins)], log=log)
    rows = []
    for line, record, (estimate, low, high), margins, allowed in told:
        about = record.parameters
        name = f"{about.get('quantizer', record.subject)} {about.get('case', '')} {record.device}"
        track = Track(place(low), place(high), place(estimate), tuple(map(place, margins)))
        rows.append(
            Row(name, track, f"{estimate:.4g} ({low:.4g} … {high:.4g}), allowed {allowed}", line, record.outcome)
        )
    return sorted(rows, key=lambda row: row.track.at, reverse=not log)


def _axis(values: Sequence[float], *, log: bool) -> Callable[[float], float]:
    """Where a value lies on an axis that shows all of them, in per cent; a logarithmic one spans six decades."""
    if log:
        least = max(values) / 1e6
        scale: Callable[[float], float] = lambda x: math.log10(max(x, least, 1e-300))  # noqa: E731
    else:
        scale = float
    first, last = scale(min(values)), scale(max(values))
    return lambda x: 2 + 96 * (scale(x) - first) / (last - first) if last > first else 50.0


@dataclass(frozen=True)
class Dot:
    """A point of estimated against measured bytes, in per cent of either axis."""

    x: float
    y: float
    told: str
    line: int
    off: bool


@dataclass(frozen=True)
class Memory:
    """Estimated against measured bytes: the points, and the ticks that both axes share."""

    dots: Sequence[Dot]
    ticks: Sequence[tuple[float, str]]
    apart: int


def memory(records: Numbered) -> Memory | None:
    """Every judgement in bytes, its prediction across and its measurement up, both logarithmic; None without any."""
    found = []
    for line, record in records:
        for judged in record.judgements:
            pair = judged.get("allowed"), judged.get("measured")
            if judged.get("unit") == "bytes" and all(isinstance(x, (int, float)) and 0 < x < math.inf for x in pair):
                found.append((line, record, float(pair[0] or 0), float(pair[1] or 0), str(judged["quantity"])))
    if not found:
        return None
    least, most = (f(math.log10(x) for _, _, *both, _ in found for x in both) for f in (min, max))
    first, last = math.floor(least), math.ceil(most + 1e-9)

    def place(x: float) -> float:
        return 100 * (math.log10(x) - first) / (last - first)

    dots = [
        Dot(place(p), place(m), f"{r.subject} {q}: estimated {size(p)}, measured {size(m)}", n, p != m)
        for n, r, p, m, q in found
    ]
    ticks = [(place(10.0**power), size(10.0**power)) for power in range(first, last + 1)]
    return Memory(dots, ticks, sum(p != m for _, _, p, m, _ in found))


def size(count: float) -> str:
    """Bytes in words, by powers of a thousand."""
    power = min(4, max(0, int(math.log10(max(count, 1))) // 3))
    return f"{count / 1000**power:.4g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
