"""report.md, report.html and report.xml from a run's folder alone: `python -m reports.render RUN`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reports import claims, curves, html, junit, summary, verdict
from reports.files import checksum, legible, write_json, write_text
from reports.markdown import cell, table
from reports.record import DOCTORED, Record, read


def markdown(records: Sequence[Record], run: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """A run as Markdown: verdict, stack, what was not verified, promises, what did not pass, how to reproduce."""
    lines = [
        "# Conformance report",
        f"**{cell(run['verdict']['sentence'])}**",
        table(summary.facts(run, environment), ("", "what this run stood on")),
        "## What was not verified",
        "\n".join(f"- {cell(line)}" for line in _unverified(records, run)) or "Nothing that was owed.",
        "## Promises",
        table(summary.by_promise(records), ("promise", "sentence", "checks", "outcome", "most of allowed", "seconds")),
        *curves.section(records)[0],
    ]
    if rows := summary.agreement(records):
        lines += [
            "## Agreement of quantized models with the released one",
            table(rows, ("quantizer", "device", "model", *summary.METRICS, "tokens", "outcome")),
            "Estimates with their 95 % intervals, clustered by document.",
        ]
    if timed := summary.ratios(records):
        lines += ["## Time of two ways in turn", table(timed, ("ratio", "subject", "device", "measured", "outcome"))]
    if found := claims.rows(records, run):
        lines += ["## Claims", table(claims.cells(found), claims.HEADER)]
    if rows := summary.waivers(records, run):
        lines += ["## Waivers", table(rows, summary.WAIVERS)]
    if rows := summary.erosion(records):
        lines += ["## Slacks that the deployment file changes", table(rows, summary.EROSION), summary.ERODED]
    if bad := [r for r in records if r.outcome in ("failed", "inconclusive")]:
        lines += ["## What did not pass", *map(_failure, bad)]
    if excused := summary.excused(list(enumerate(records, 1))):
        lines += ["## What was waived", *(_excused(waiver, [r for _, r in about]) for waiver, about in excused)]
    lines += [
        "## Tightest passes",
        table(summary.tightest(records, 20), ("promise", "check", "quantity", "measured ÷ allowed")),
        "## Reproduce",
        f"```\n{summary.reproduce(run, environment)}\n```",
        "Every record in records.jsonl carries its own rerun command and seed. `python -m reports.verify RUN` judges "
        "every number of this folder again, and says whether its files belong together.",
    ]
    return "\n\n".join(lines) + "\n"


def _unverified(records: Sequence[Record], run: Mapping[str, Any]) -> list[str]:
    told = [f"{r.promise} {summary.short(r.check)}: {r.message}" for r in records if r.outcome == "unverified"]
    return [*summary.missing(records, run), *told]


def _failure(record: Record) -> str:
    name = cell(record.check).replace("`", "'")
    return f"### {record.outcome}: `{name}`\n\n{_fenced(record.message)}"


def _excused(waiver: Mapping[str, str], records: Sequence[Record]) -> str:
    """A waiver, the checks that it excused, and what was wrong with the first of them: records.jsonl has it of all."""
    checks = _fenced("\n".join(record.check for record in records))
    head = f"### waived, {len(records):,} ×: {cell(waiver.get('reason', ''))}"
    return "\n\n".join([head, _fenced(records[0].message), "Checks:", checks])


def _fenced(text: str) -> str:
    return f"```\n{text.replace('```', '` ` `')}\n```"


# Rows of the short form: a job's summary is read on one screen, and its size has a limit.
SHORT = 30


def short(records: Sequence[Record], run: Mapping[str, Any]) -> str:
    """The verdict, what was not verified and what did not pass, as Markdown for the summary of a CI job."""
    bad, missing = summary.not_passed(records), _unverified(records, run)
    lines = [f"## Spiritlevel\n\n**{cell(run['verdict']['sentence'])}**"]
    if missing:
        lines.append("Not verified:\n\n" + "\n".join(f"- {cell(line)}" for line in missing[:SHORT]))
    if bad:
        lines.append(table(bad[:SHORT], ("outcome", "promise", "check", "why")))
    if more := max(0, len(bad) - SHORT) + max(0, len(missing) - SHORT):
        lines.append(f"and {more:,} more, in report.html")
    return "\n\n".join(lines) + "\n"


def write(folder: Path, records: Sequence[Record], run: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    """Write a run's report, and the pictures that report.md shows, into its folder; their names."""
    written = texts(records, run, environment)
    for name, text in written.items():
        write_text(folder / name, text)
    return list(written)


def texts(records: Sequence[Record], run: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, str]:
    """The files of a report, by name."""
    return {
        "report.md": markdown(records, run, environment),
        "report.html": html.page(records, run, environment, claims.rows(records, run)),
        "report.xml": junit.xml(records, run),
        **curves.section(records)[1],
    }


def load(folder: Path) -> tuple[list[Record], dict[str, Any], dict[str, Any]]:
    """Records, facts and environment of a run, also of one that was killed: its verdict follows from what is there."""
    records = read(folder / "records.jsonl")
    run, environment = (_json(folder / f"{name}.json") for name in ("run", "environment"))
    if "verdict" not in run:
        told = {"owed": run.get("owed", ()), "scope": run.get("scope", "of a run that was cut off")}
        found = verdict.judge(records, **told, incomplete=[verdict.STOPPED])
        run["verdict"] = {"name": found.name, "sentence": found.sentence, "exit_code": found.exit_code}
    return records, run, environment


def _culprit(records: Sequence[Record], run: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """The first record that cannot be rendered alone, by its line."""
    for line, record in enumerate(records, 1):
        try:
            texts([record], run, environment)
        except DOCTORED as error:
            return f"records.jsonl, line {line} ({record.check}) holds what no check has written: {error!r}"
    return ""


def _json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no object")
    return found


def main(arguments: list[str]) -> int:
    """Render a run again. Where run.json holds checksums, those of the report become the new report's, no others."""
    parser = argparse.ArgumentParser(prog="python -m reports.render", description="Write a run's report again.")
    parser.add_argument("run", type=Path, help="the folder of a run")
    folder = parser.parse_args(arguments).run
    try:
        records, run, environment = load(folder)
    except (OSError, *DOCTORED) as error:
        print(f"{legible(folder)} is no run: {error}")
        return 1
    try:
        written = write(folder, records, run, environment)
    except DOCTORED as error:
        print(f"{legible(folder)} cannot be rendered: {_culprit(records, run, environment) or repr(error)}")
        return 1
    if "sha256" in run:
        run["sha256"] |= {name: checksum(folder / name) for name in written}
        write_json(folder / "run.json", run)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
