"""A certificate as Markdown, as one HTML file that opens offline, as JSON, and as the few lines of a terminal."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from reports import html as page
from reports import summary
from reports.markdown import cell, table
from reports.pairing import KINDS, SAFE, Entry
from reports.record import order, plain
from reports.upgrade import Certificate

# Of the checks of one promise so many are named; all of them stand in certificate.json.
NAMED = 3


class Group(NamedTuple):
    """What became of the same kind, of one promise: how many, of whom, and the first few that moved most."""

    kind: str
    promise: str
    statement: str
    checks: int
    subjects: str
    shown: list[tuple[str, str]]

    @property
    def more(self) -> int:
        """How many are not shown."""
        return self.checks - len(self.shown)


class Table(NamedTuple):
    """Rows under a header, and what they are."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    told: str = ""


def tables(found: Certificate) -> list[Table]:
    """What changed in the stack, what became of the checks, of the tokens, and what drifts; none that is empty."""
    stack = [row for row in found.stack if not row[0].startswith(("kernels", "dtypes"))] + [
        (name.replace(" ", ": ", 1), *values) for name, *values in found.stack if name.startswith(("kernels", "dtypes"))
    ]
    flips = [
        (
            summary.short(f.check) + ("" if f.what == "text" else f", {f.what}"),
            *(f"{n:,}" for n in (f.tokens, f.flips, f.unexplained)),
            f"{f.largest:.2g} ({f.noise:g})",
            f"{f.lost} : {f.won} (p {f.p:.2g})",
            f"{f.right.estimate:+.2%} ({f.right.low:+.2%} … {f.right.high:+.2%})",
            f"{f.logp.estimate:+.2g} ({f.logp.low:+.2g} … {f.logp.high:+.2g})",
        )
        for f in sorted(found.flips, key=lambda f: (-f.unexplained, f.p, -f.flips, -abs(f.logp.estimate)))
        if f.flips or f.logp.estimate
    ]
    drifts = [
        (d.promise, f"{d.quantity} {d.dtype}", d.subject, f"× {d.ratio:.3g}", f"{d.more} of {d.moved}", f"{d.p:.1g}")
        for d in found.drifts
    ]
    every = [
        Table("What changed in the stack", ("", "before", "after"), [(a, str(b), str(c)) for a, b, c in stack]),
        Table(
            "Checks",
            ("", "checks", "asks for"),
            [(k, f"{found.count[k]:,}", KINDS[k]) for k in KINDS if found.count[k]],
        ),
        Table("Token by token", FLIPS, flips, TOLD.format(asked=len(found.flips), same=len(found.flips) - len(flips))),
        Table("What drifts", ("promise", "quantity", "subject", "after ÷ before", "grew in", "p"), drifts, DRIFTS),
    ]
    return [part for part in every if part.rows]


FLIPS = (
    "check",
    "tokens",
    "flips",
    "unexplained",
    "largest lead (noise), nats",
    "lost : won",
    "change of top-1 accuracy",
    "change of log-probability, nats a token",
)
TOLD = (
    "First choices of {asked} texts; of {same} every token is the same. A flip is explained where neither run was "
    "surer of its choice than noise. Lost, won: tokens of the text that were ranked first only before, or after, with "
    "McNemar's exact test. Intervals are of 95 %, clustered by document."
)
DRIFTS = "Each check is within noise; together they went one way (exact sign test, corrected for how many were tried)."


def groups(found: Certificate) -> list[Group]:
    """What is not as it was, by kind and promise, the worst first."""
    by: dict[tuple[str, str, str], list[Entry]] = defaultdict(list)
    for entry in found.entries:
        if KINDS[entry.kind] != SAFE:
            by[entry.kind, entry.promise, entry.statement].append(entry)
    kinds = list(KINDS)
    return [
        Group(*key, len(some), _subjects(some), _shown(some))
        for key, some in sorted(by.items(), key=lambda pair: (kinds.index(pair[0][0]), order(pair[0][1]), pair[0]))
    ]


def gone(found: Certificate) -> list[str]:
    """Subjects that were asked before and are not in any check now, with how many checks had them."""
    now = {name for r in found.after.records for name in r.subject.split(", ")}
    before: dict[str, int] = defaultdict(int)
    for record in found.before.records:
        for name in set(record.subject.split(", ")) - now:
            before[name] += 1
    why = found.after.facts.get("not_here", {})
    return [
        f"{name}, in {count:,} checks" + "".join(f"; {reason}" for reason in why if name in reason.split())
        for name, count in before.items()
        if name
    ]


def _subjects(entries: Sequence[Entry], most: int = 8) -> str:
    names = list(dict.fromkeys(e.subject for e in entries))
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")


def _shown(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Those that moved most, and one of each reason first."""
    ordered = sorted(entries, key=lambda e: -abs(e.moved))
    reasons = {e.told: e for e in reversed(ordered)}
    first = sorted(reasons.values(), key=lambda e: -abs(e.moved))
    return [(summary.short(e.check), e.told) for e in [*first, *(e for e in ordered if e not in first)][:NAMED]]


def facts(found: Certificate) -> list[tuple[str, str, str]]:
    """Which two runs these are."""
    sides = found.before, found.after
    rows = [("run", *(side.name for side in sides))]
    rows += [(k, *(str(side.facts.get(k, "not known")) for side in sides)) for k in ("deployment", "model", "started")]
    rows.append(("stack", *(summary.stack(side.environment) for side in sides)))
    rows.append(("came to", *(str(side.facts.get("verdict", {}).get("sentence", "did not end")) for side in sides)))
    return [(what, old, new) for what, old, new in rows]


def markdown(found: Certificate) -> str:
    """The whole certificate."""
    blocks = [
        "# Upgrade certificate",
        f"**{cell(found.sentence)}**",
        table(facts(found), ("", "before", "after")),
    ]
    blocks += [f"- {cell(note)}" for note in found.notes]
    for part in tables(found):
        blocks += [f"## {part.title}", *[part.told] * bool(part.told), table(part.rows, part.header)]
    if lost := gone(found):
        blocks += ["## No longer there", "\n".join(f"- {cell(line)}" for line in lost)]
    for kind in KINDS:
        if some := [g for g in groups(found) if g.kind == kind]:
            blocks += [f"## {kind[0].upper()}{kind[1:]}", *map(_group, some)]
    blocks.append("## Reproduce")
    blocks.append("```\n" + "\n".join(side.facts.get("command", "") for side in (found.before, found.after)) + "\n```")
    return "\n\n".join(blocks) + "\n"


def _group(group: Group) -> str:
    lines = [
        f"**{group.promise}** {cell(group.statement)}",
        f"{group.checks} of: {cell(group.subjects)}",
    ]
    lines += [f"- `{check.replace('`', '')}`" + (f"  \n  {cell(told)}" if told else "") for check, told in group.shown]
    lines += [f"- and {group.more} more"] * (group.more > 0)
    return "\n".join([lines[0], "", lines[1], "", *lines[2:]])


def html(found: Certificate) -> str:
    """The same as one file without anything beside it."""
    return page.render(
        "certificate.html",
        verdict=found.verdict,
        sentence=found.sentence,
        facts=facts(found),
        notes=found.notes,
        tables=tables(found),
        gone=gone(found),
        groups=groups(found),
        commands=[side.facts.get("command", "") for side in (found.before, found.after)],
    )


def as_dict(found: Certificate) -> dict[str, Any]:
    """Everything, every check that is not equal in every bit among it."""
    return {
        "schema": 1,
        "verdict": found.verdict,
        "exit_code": found.exit_code,
        "sentence": found.sentence,
        "before": {"run": found.before.name, **found.before.facts},
        "after": {"run": found.after.name, **found.after.facts},
        "stack": [dict(zip(("what", "before", "after"), row, strict=True)) for row in found.stack],
        "notes": found.notes,
        "counts": dict(found.count),
        "gone": gone(found),
        "checks": [asdict(e) for e in found.entries if e.kind != "bitwise equal"],
        "flips": [{**asdict(f), "right": f.right._asdict(), "logp": f.logp._asdict()} for f in found.flips],
        "drifts": [asdict(d) for d in found.drifts],
    }


def terminal(found: Certificate) -> str:
    """What changed in the stack, what is worst, and the verdict."""
    blocks = [tabulate(t.rows, t.header, tablefmt="simple", disable_numparse=True) for t in tables(found)[:1]]
    bad = [(g.kind, g.promise, str(g.checks), *(summary.first_line(x, 90) for x in g.shown[0])) for g in groups(found)]
    if bad:
        header = ("kind", "promise", "checks", "such as", "what moved")
        blocks.append(tabulate(bad, header, tablefmt="simple", disable_numparse=True))
    return "\n\n".join([*blocks, *found.notes, found.sentence])


def write(folder: Path, found: Certificate) -> None:
    """Write certificate.md, certificate.html and certificate.json into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    told = json.dumps(plain(as_dict(found)), indent=1, sort_keys=True, allow_nan=False)
    for name, content in {"md": markdown(found), "html": html(found), "json": told + "\n"}.items():
        (folder / f"certificate.{name}").write_text(content, encoding="utf-8")
