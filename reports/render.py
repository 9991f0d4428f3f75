"""report.md from a run's folder alone: `python -m reports.render RUN`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from reports import curves, summary, verdict
from reports.record import Record, read


def markdown(records: Sequence[Record], run: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """A run as Markdown: verdict, stack, what was not verified, promises, what did not pass, how to reproduce."""
    lines = [
        "# Conformance report",
        f"**{_cell(run['verdict']['sentence'])}**",
        tabulate(
            [(k, _cell(v)) for k, v in _facts(run, environment)], ("", "what this run stood on"), tablefmt="github"
        ),
        "## What was not verified",
        "\n".join(f"- {_cell(line)}" for line in _unverified(records, run)) or "Nothing that was owed.",
        "## Promises",
        _table(summary.by_promise(records), ("promise", "sentence", "checks", "outcome", "most of allowed", "seconds")),
        *curves.section(records)[0],
    ]
    if rows := summary.agreement(records):
        lines += [
            "## Agreement of quantized models with the released one",
            _table(rows, ("quantizer", "device", "model", *summary.METRICS, "tokens", "outcome")),
            "Estimates with their 95 % intervals, clustered by document.",
        ]
    if rows := summary.waivers(records, run):
        header = ("promise", "checks", "reason", "owner", "age", "until", "link")
        lines += ["## Waivers", _table(rows, header)]
    if rows := summary.erosion(records):
        header = ("slack of", "allowed", "calibrated", "ratio", "reason", "owner", "until")
        lines += [
            "## Slacks that the deployment file changes",
            _table(rows, header),
            "A ratio above 1 is erosion: a fault of that size is no longer seen.",
        ]
    if bad := [r for r in records if r.outcome in ("failed", "inconclusive", "waived")]:
        lines.append("## What did not pass")
        lines += [_failure(r) for r in bad]
    lines += [
        "## Tightest passes",
        _table(summary.tightest(records, 20), ("promise", "check", "quantity", "measured ÷ allowed")),
        "## Reproduce",
        f"```\n{run.get('command', '')}\n```",
        "Every record in records.jsonl carries its own rerun command and seed.",
    ]
    return "\n\n".join(lines) + "\n"


def _facts(run: Mapping[str, Any], environment: Mapping[str, Any]) -> list[tuple[str, Any]]:
    versions = environment.get("versions", {})
    return [
        ("deployment", run.get("deployment", "")),
        ("model", run.get("model", "")),
        ("when", "; gone on with on ".join([run.get("started", ""), *run.get("resumed", ())])),
        ("stack", summary.stack(environment)),
        ("CUDA, cuDNN", f"{environment.get('cuda') or 'none'}, {environment.get('cudnn') or 'none'}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items())),
        ("attention kernels", "; ".join(f"{k}: {', '.join(v)}" for k, v in environment.get("kernels", {}).items())),
        ("seed, seconds", f"{run.get('seed', 0)}, {run.get('seconds', 0):.0f}"),
    ]


def _unverified(records: Sequence[Record], run: Mapping[str, Any]) -> list[str]:
    told = [f"{r.promise} {summary.short(r.check)}: {r.message}" for r in records if r.outcome == "unverified"]
    return [*run.get("notes", ()), *told]


def _failure(record: Record) -> str:
    waived = f"\n\nWaived: {_cell(json.dumps(record.waiver, sort_keys=True))}" if record.waiver else ""
    return f"### {record.outcome}: `{record.check}`\n\n```\n{record.message.replace('```', '` ` `')}\n```{waived}"


def _table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    return tabulate([[_cell(c) for c in row] for row in rows], header, tablefmt="github", disable_numparse=True)


def _cell(value: Any) -> str:
    """Text that cannot break out of a table's cell."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def write(folder: Path, records: Sequence[Record], run: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    """Write report.md into a run's folder, and the pictures that it shows."""
    (folder / "report.md").write_text(markdown(records, run, environment), encoding="utf-8")
    for name, picture in curves.section(records)[1].items():
        (folder / name).write_text(picture, encoding="utf-8")


def load(folder: Path) -> tuple[list[Record], dict[str, Any], dict[str, Any]]:
    """Records, facts and environment of a run, also of one that was killed: its verdict follows from what is there."""
    records = read(folder / "records.jsonl")
    run, environment = (_json(folder / f"{name}.json") for name in ("run", "environment"))
    if "verdict" not in run:
        told = {"owed": run.get("owed", ()), "scope": run.get("scope", "of a run that was cut off")}
        found = verdict.judge(records, **told, incomplete=[verdict.STOPPED])
        run["verdict"] = {"name": found.name, "sentence": found.sentence, "exit_code": found.exit_code}
    return records, run, environment


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0])
    write(folder, *load(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
