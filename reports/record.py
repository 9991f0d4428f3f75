"""One JSON line about one check, appended and flushed as it is judged."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any

SCHEMA = 1
OUTCOMES = ("passed", "failed", "waived", "inconclusive", "unverified")
SEVERITY = ("passed", "waived", "unverified", "inconclusive", "failed")


@dataclass(frozen=True)
class Record:
    """What one check measured, what was allowed, and what followed."""

    check: str
    promise: str
    statement: str
    area: str
    outcome: str
    subject: str = ""
    device: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    judgements: tuple[Mapping[str, Any], ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    crash: bool = False
    waiver: Mapping[str, str] | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    seed: int = 0
    rerun: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"{self.check}: {self.outcome!r} is no outcome; there are {', '.join(OUTCOMES)}")

    @property
    def headroom(self) -> float | None:
        """The largest measured ÷ allowed of its judgements; None where all were exact."""
        tightest = self.tightest
        return None if tightest is None else _share(tightest)

    @property
    def tightest(self) -> Mapping[str, Any] | None:
        """The judgement with the largest measured ÷ allowed."""
        judged = [j for j in self.judgements if j.get("headroom") is not None]
        return max(judged, key=_share) if judged else None

    def line(self) -> str:
        try:
            return json.dumps(vars(self), sort_keys=True, allow_nan=False)
        except (TypeError, ValueError):  # seldom: to look for what JSON has no word for takes longer than to write
            return json.dumps(plain(vars(self)), sort_keys=True, allow_nan=False)


Numbered = Sequence[tuple[int, Record]]  # a record and its line in records.jsonl


def _share(judged: Mapping[str, Any]) -> float:
    """A judgement's measured ÷ allowed; what is not a number lies beyond any allowance."""
    found = float(judged["headroom"])
    return math.inf if math.isnan(found) else found


def worse(first: Record | None, second: Record) -> Record:
    """The worse of two: a later phase, or a second attempt, cannot make a check look better than it was."""
    return max(first or second, second, key=lambda record: (SEVERITY.index(record.outcome), record.crash))


def order(promise: str) -> tuple[str, int, str]:
    """The key by which ids of promises are sorted: by area, then by number, so that KV-2 stands before KV-10."""
    area, _, number = promise.rpartition("-")
    return area, len(number), number


def plain(value: Any) -> Any:
    """JSON has no NaN and no Inf: they are kept as words, which `float()` reads back."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def parse(line: str) -> Record:
    """The record that a line holds. Raises ValueError for what is no record of this schema."""
    try:
        data = json.loads(line)
    except RecursionError as error:
        raise ValueError("not a record: it is nested too deeply") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not set(data) <= KNOWN:
        raise ValueError(f"not a record of schema {SCHEMA}")
    for name, kind in KINDS.items():
        value = data.get(name)
        if (name in data or name in NEEDED) and (
            not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        ):
            raise ValueError(f"not a record of schema {SCHEMA}: {name} is {shortened(value)}")
    texts = [*data.get("parameters", {}).values(), *(data.get("waiver") or {}).values(), *data.get("warnings", ())]
    if odd := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"not a record of schema {SCHEMA}: no text where one is wanted: {shortened(odd[0])}")
    for judged in data.get("judgements", ()):
        if not isinstance(judged, dict) or not _is_share(judged.get("headroom")):
            raise ValueError(f"not a record of schema {SCHEMA}: a judgement is {shortened(judged)}")
    data["judgements"] = tuple(data.get("judgements", ()))
    data["warnings"] = tuple(data.get("warnings", ()))
    return Record(**data)


KNOWN = frozenset(f.name for f in fields(Record))
# What stands under each name of a record's line; a line need not hold more than NEEDED.
KINDS: dict[str, Any] = {
    **dict.fromkeys(("check", "promise", "statement", "area", "outcome"), str),
    **dict.fromkeys(("subject", "device", "message", "rerun"), str),
    **dict.fromkeys(("parameters", "evidence", "environment"), dict),
    **dict.fromkeys(("judgements", "warnings"), list),
    "crash": bool,
    "waiver": (dict, NoneType),
    "seconds": (int, float),
    "seed": int,
}
NEEDED = ("check", "promise", "statement", "area", "outcome")

# What reading an evidence raises that no check has written.
DOCTORED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def shortened(value: Any) -> str:
    told = repr(value)
    return told if len(told) < 100 else f"{told[:100]}…"


def _is_share(value: Any) -> bool:
    try:
        float(0 if value is None else value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def append(path: Path, line: str, *, sync: bool = True) -> None:
    """Hand a line to the system, which keeps it whatever becomes of this process; with `sync`, have it on the disk.

    Raises OSError, and leaves no half of it.
    """
    rest = f"{line}\n".encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        end = os.lseek(file, 0, os.SEEK_END)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
            if sync:
                os.fsync(file)
        except OSError:
            os.ftruncate(file, end)
            raise
    finally:
        os.close(file)


def read(path: Path) -> list[Record]:
    """All records of a run. The last line of a run that was killed may be cut: it is left out.

    Raises ValueError with file and line for anything else that is not a record of this schema.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text ({error})") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            records.append(parse(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return records
