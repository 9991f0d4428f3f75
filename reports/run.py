"""A run's folder: records as they are judged, and at the end what they come to.

A run that was killed has left its facts, its environment and every record; another process can go on in its folder.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from reports import render
from reports.files import checksums, hold, write_json, write_text
from reports.record import Record, append, parse, read
from reports.verdict import Verdict
from reports.wording import homeless, may_tell, private

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "reports" / "runs"

# What two parts of one run must have in common, beside the environment.
COMMON = ("deployment", "model", "data", "seed", "tier", "programs", "given", "required", "scope", "owed", "checks")

# Of a machine that loses power so many seconds of records may be lost; to wait for the disk after each check took a
# quarter of a run's time where a disk takes 50 ms.
SYNCED = 1.0


@dataclass
class Run:
    """`reports/runs/<time>-<host>/`, or the folder that was asked for; made when the first check is about to run.

    kept: name -> text of the files that decided what was owed, such as deployment.toml. Nothing is written that is not
    `wording.private`. former: what an earlier part of the run has judged, None where this is the first.
    """

    folder: Path
    environment: Mapping[str, Any]
    facts: dict[str, Any]
    kept: Mapping[str, str] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    former: Sequence[Record] | None = None
    started: float = field(default_factory=time.monotonic)
    synced: float = 0.0
    release: Callable[[], object] | None = None

    @property
    def judged(self) -> frozenset[str]:
        """Checks that an earlier part has judged, which this one leaves alone."""
        return frozenset(record.check for record in self.former or ())

    def open(self) -> None:
        """Make the folder, or go on in it.

        Raises OSError where it cannot be written, FileExistsError where it holds another run, or one is under way;
        ValueError where the earlier part was of another stack, suite, model, deployment or selection.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.release = hold(self.folder, self)
        if self.former is not None:
            self._go_on(self.former)
        if self.former is None and (self.folder / "records.jsonl").exists():
            raise FileExistsError(f"{self.folder} already holds a run: a run is never overwritten")
        self.environment, facts = private(self.environment), private(self.facts)
        write_json(self.folder / "environment.json", self.environment)
        write_json(self.folder / "run.json", facts)
        for name, text in self.kept.items():
            write_text(self.folder / name, private(text))
        write_text(self.folder / "records.jsonl", "".join(f"{record.line()}\n" for record in self.records))

    def _go_on(self, former: Sequence[Record]) -> None:
        if verified(self.folder) != former:
            raise ValueError(f"{self.folder}: another run has gone on there meanwhile; ask for --resume again")
        before, environment = (
            json.loads((self.folder / f"{n}.json").read_text("utf-8")) for n in ("run", "environment")
        )
        now = json.loads(json.dumps(private({"run": self.facts, "environment": self.environment})))
        pairs = [(key, before.get(key), now["run"].get(key)) for key in COMMON]
        pairs += [(key, environment.get(key), now["environment"].get(key)) for key in environment | now["environment"]]
        other = [f"{key} was {was!r} and is {found!r}" for key, was, found in pairs if was != found]
        if other:
            raise ValueError(f"{self.folder} cannot be resumed: {'; '.join(other)}")
        parts = [*before.get("resumed", []), f"{self.facts['started']}, after {len(former)} checks"]
        self.facts |= {"started": before["started"], "command": before["command"], "resumed": parts}
        self.records = list(former)

    def add(self, line: str) -> None:
        """Keep a check's record, handed over as its line. Raises OSError where it cannot be written."""
        record = parse(line)
        if may_tell(line):
            record = Record(**private(vars(record)))
            line = record.line()
        now = time.monotonic()
        due = now > self.synced + SYNCED
        append(self.folder / "records.jsonl", line, sync=due)
        self.synced = now if due else self.synced
        self.records.append(record)

    def close(self, verdict: Verdict, terms: Mapping[str, Any]) -> None:
        """Keep the verdict and the `terms` it was judged on; where there are records, write run.json and the report.

        run.json is written before the report, which may fail, and again with the checksum of every file beside it.
        """
        self.verdict = verdict
        self.facts |= {
            "verdict": {"name": verdict.name, "sentence": verdict.sentence, "exit_code": verdict.exit_code},
            "terms": terms,
            "seconds": round(time.monotonic() - self.started, 1),
            "notes": self.notes,
        }
        self.facts = private(self.facts)
        if self.records:
            write_json(self.folder / "run.json", self.facts)
            render.write(self.folder, self.records, self.facts, self.environment)
            write_json(self.folder / "run.json", self.facts | {"sha256": checksums(self.folder)})
        if self.release:
            self.release()
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with contextlib.suppress(OSError), Path(summary).open("a", encoding="utf-8") as stream:
                stream.write(render.short(self.records, self.facts))

    def report(self) -> str:
        """Where report.html is, as a person who is in this folder would write it."""
        folder, here = self.folder.absolute(), Path.cwd()
        shown = str(folder.relative_to(here)) if folder.is_relative_to(here) else homeless(str(folder))
        return f"{shown}/report.html"


def begin(
    folder: Path | None,
    environment: Mapping[str, Any],
    tested: Mapping[str, Any],
    arguments: Sequence[str],
    now: datetime.datetime,
    files: Mapping[str, Path | None],
    resume: Path | None = None,
) -> Run:
    """A run of `pytest ARGUMENTS` on what was `tested`; nothing is written before it is opened.

    `files` are kept under their names, as they are now: a deployment, a policy. resume: the folder of a run to go on
    with. What it has not verified is tried again. Raises OSError or ValueError where it cannot be read.
    """
    facts = {
        **tested,
        "suite": commit(),
        "started": f"{now.astimezone():%Y-%m-%d %H:%M:%S %z}",
        "command": homeless(shlex.join(["pytest", *arguments])),
    }
    kept = {name: path.read_text(encoding="utf-8") for name, path in files.items() if path}
    facts["kept"] = sorted(kept)
    if resume:
        return Run(resume, environment, facts, kept, former=verified(resume))
    return Run(folder or default_folder(RUNS, platform.node(), now), environment, facts, kept)


def verified(folder: Path) -> list[Record]:
    """The records of a run that need not be tried again."""
    return [record for record in read(folder / "records.jsonl") if record.outcome != "unverified"]


@cache
def commit() -> str:
    """The commit that this suite was checked out at, `-dirty` where a file was changed; empty where git cannot tell."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, encoding="utf-8", timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


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
