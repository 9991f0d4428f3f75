"""One JSON line about one check, appended and flushed as it is judged."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
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
        return json.dumps(plain(asdict(self)), sort_keys=True, allow_nan=False)


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
    data = json.loads(line)
    known = {f.name for f in fields(Record)}
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not set(data) <= known:
        raise ValueError(f"not a record of schema {SCHEMA}")
    data["judgements"] = tuple(data.get("judgements", ()))
    data["warnings"] = tuple(data.get("warnings", ()))
    return Record(**data)


def append(path: Path, record: Record, *, sync: bool = True) -> None:
    """Hand one line to the system, which keeps it whatever becomes of this process; with `sync`, have it on the disk.

    Raises OSError, and leaves no half of it.
    """
    line = f"{record.line()}\n".encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        end = os.lseek(file, 0, os.SEEK_END)
        try:
            while line:
                line = line[os.write(file, line) :]
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
    lines = path.read_text(encoding="utf-8").split("\n")
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
