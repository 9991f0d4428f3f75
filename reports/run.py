"""A run's folder: records as they are judged, and at the end what they come to."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reports import render
from reports.record import Record, append
from reports.verdict import Verdict


@dataclass
class Run:
    """`reports/runs/<time>-<host>/`, or the folder that was asked for; made when the first check is about to run."""

    folder: Path
    environment: Mapping[str, Any]
    facts: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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

    def close(self, verdict: Verdict, seconds: float) -> None:
        """Write run.json and report.md."""
        self.facts |= {
            "verdict": {"name": verdict.name, "sentence": verdict.sentence, "exit_code": verdict.exit_code},
            "seconds": round(seconds, 1),
            "notes": self.notes,
        }
        self._write("run.json", self.facts)
        text = render.markdown(self.records, self.facts, self.environment)
        (self.folder / "report.md").write_text(text, encoding="utf-8")

    def _write(self, name: str, data: Mapping[str, Any]) -> None:
        (self.folder / name).write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def default_folder(root: Path, host: str, now: datetime.datetime) -> Path:
    """`<root>/<time>-<host>`, with nothing in the host's name that a file system would mind."""
    return root / f"{now:%Y%m%dT%H%M%S}-{re.sub(r'[^A-Za-z0-9.-]+', '-', host) or 'host'}"
