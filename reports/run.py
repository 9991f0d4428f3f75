"""A run's folder: records as they are judged, and at the end what they come to."""

from __future__ import annotations

import datetime
import json
import platform
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reports import render
from reports.record import Record, append
from reports.verdict import Verdict
from reports.wording import homeless

RUNS = Path(__file__).parent / "runs"


@dataclass
class Run:
    """`reports/runs/<time>-<host>/`, or the folder that was asked for; made when the first check is about to run."""

    folder: Path
    environment: Mapping[str, Any]
    facts: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    started: float = field(default_factory=time.monotonic)

    def open(self) -> None:
        """Make the folder. Raises OSError where it cannot be written, FileExistsError where it holds another run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "records.jsonl").exists():
            raise FileExistsError(f"{self.folder} already holds a run: a run is never overwritten")
        (self.folder / "records.jsonl").touch()
        self._write("environment.json", self.environment)

    def add(self, record: Record) -> None:
        append(self.folder / "records.jsonl", record)
        self.records.append(record)

    def close(self, verdict: Verdict) -> None:
        """Keep the verdict; where there are records, write run.json and report.md."""
        self.verdict = verdict
        if not self.records:
            return
        self.facts |= {
            "verdict": {"name": verdict.name, "sentence": verdict.sentence, "exit_code": verdict.exit_code},
            "seconds": round(time.monotonic() - self.started, 1),
            "notes": self.notes,
        }
        self._write("run.json", self.facts)
        render.write(self.folder, self.records, self.facts, self.environment)

    def report(self) -> str:
        """Where report.md is, as a person who is in this folder would write it."""
        folder, here = self.folder.absolute(), Path.cwd()
        shown = str(folder.relative_to(here)) if folder.is_relative_to(here) else homeless(str(folder))
        return f"{shown}/report.md"

    def _write(self, name: str, data: Mapping[str, Any]) -> None:
        (self.folder / name).write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def begin(
    folder: Path | None,
    environment: Mapping[str, Any],
    tested: Mapping[str, Any],
    arguments: Sequence[str],
    now: datetime.datetime,
) -> Run:
    """A run of `pytest ARGUMENTS` on what was `tested`; nothing is written before it is opened."""
    facts = {
        **tested,
        "started": f"{now.astimezone():%Y-%m-%d %H:%M:%S %z}",
        "command": homeless(shlex.join(["pytest", *arguments])),
    }
    return Run(folder or default_folder(RUNS, platform.node(), now), environment, facts)


def default_folder(root: Path, host: str, now: datetime.datetime) -> Path:
    """`<root>/<time>-<host>`, with nothing in the host's name that a file system would mind."""
    return root / f"{now:%Y%m%dT%H%M%S}-{re.sub(r'[^A-Za-z0-9.-]+', '-', host) or 'host'}"
