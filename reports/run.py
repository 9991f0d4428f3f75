"""A run's folder: records as they are judged, and at the end what they come to.

A run that was killed has left its facts, its environment and every record; another process can go on in its folder.
"""

from __future__ import annotations

import datetime
import hashlib
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
from reports.record import Record, append, read
from reports.verdict import Verdict
from reports.wording import homeless

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "reports" / "runs"

# What two parts of one run must have in common, beside the environment.
COMMON = ("deployment", "model", "seed", "tier", "programs", "given", "required", "scope", "owed", "checks")


@dataclass
class Run:
    """`reports/runs/<time>-<host>/`, or the folder that was asked for; made when the first check is about to run.

    former: what an earlier part of the run has judged, None where this is the first.
    """

    folder: Path
    environment: Mapping[str, Any]
    facts: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    former: Sequence[Record] | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def judged(self) -> frozenset[str]:
        """Checks that an earlier part has judged, which this one leaves alone."""
        return frozenset(record.check for record in self.former or ())

    def open(self) -> None:
        """Make the folder, or go on in it.

        Raises OSError where it cannot be written, FileExistsError where it holds another run, ValueError where the
        earlier part was of another stack, suite, model, deployment or selection.
        """
        if self.former is not None:
            self._go_on(self.former)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.former is None and (self.folder / "records.jsonl").exists():
            raise FileExistsError(f"{self.folder} already holds a run: a run is never overwritten")
        self._write("environment.json", self.environment)
        self._write("run.json", self.facts)
        self._replace("records.jsonl", "".join(f"{record.line()}\n" for record in self.records))

    def _go_on(self, former: Sequence[Record]) -> None:
        before, environment = (
            json.loads((self.folder / f"{n}.json").read_text("utf-8")) for n in ("run", "environment")
        )
        now = json.loads(json.dumps({"run": self.facts, "environment": self.environment}))
        pairs = [(key, before.get(key), now["run"].get(key)) for key in COMMON]
        pairs += [(key, environment.get(key), now["environment"].get(key)) for key in environment | now["environment"]]
        other = [f"{key} was {was!r} and is {found!r}" for key, was, found in pairs if was != found]
        if other:
            raise ValueError(f"{self.folder} cannot be resumed: {'; '.join(other)}")
        parts = [*before.get("resumed", []), f"{self.facts['started']}, after {len(former)} checks"]
        self.facts |= {"started": before["started"], "command": before["command"], "resumed": parts}
        self.records = list(former)

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
        self._replace(name, json.dumps(data, indent=2, sort_keys=True) + "\n")

    def _replace(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        part = self.folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(self.folder / name)


def begin(
    folder: Path | None,
    environment: Mapping[str, Any],
    tested: Mapping[str, Any],
    arguments: Sequence[str],
    now: datetime.datetime,
    resume: Path | None = None,
) -> Run:
    """A run of `pytest ARGUMENTS` on what was `tested`; nothing is written before it is opened.

    resume: the folder of a run to go on with. What it has not verified is tried again. Raises OSError or ValueError
    where it cannot be read.
    """
    facts = {
        **tested,
        "started": f"{now.astimezone():%Y-%m-%d %H:%M:%S %z}",
        "command": homeless(shlex.join(["pytest", *arguments])),
    }
    if resume:
        former = [record for record in read(resume / "records.jsonl") if record.outcome != "unverified"]
        return Run(resume, environment, facts, former=former)
    return Run(folder or default_folder(RUNS, platform.node(), now), environment, facts)


def checksum(folder: Path = ROOT) -> str:
    """Of the suite that judges: its programs and tables, without its own tests."""
    files = [path for name in ("fixtures", "suites", "reports") for path in (folder / name).rglob("*.*")]
    digest = hashlib.sha256()
    for path in sorted(p for p in files if p.suffix in (".py", ".toml") and not {"meta", "runs"} & set(p.parts)):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def default_folder(root: Path, host: str, now: datetime.datetime) -> Path:
    """`<root>/<time>-<host>`, with nothing in the host's name that a file system would mind."""
    return root / f"{now:%Y%m%dT%H%M%S}-{re.sub(r'[^A-Za-z0-9.-]+', '-', host) or 'host'}"
