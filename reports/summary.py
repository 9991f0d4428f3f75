"""What a person reads first: the verdict, everything that did not pass, and the tightest passes."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from reports.record import Numbered, Record, order
from reports.verdict import Verdict

TIGHTEST = 8


def first_line(text: str, limit: int = 110) -> str:
    line = text.strip().split("\n")[0]
    return line if len(line) <= limit else line[: limit - 1] + "…"


def reason(record: Record) -> str:
    """Why a check did not pass, in one line: what comes after the promise."""
    return first_line(record.message.removeprefix(f"{record.promise}: {record.statement}\n"))


def short(check: str) -> str:
    """A node id without the folder that all of them share."""
    return check.removeprefix("suites/")


def not_passed(records: Sequence[Record]) -> list[tuple[str, str, str, str]]:
    """outcome, promise, check and why, of every check that did not pass."""
    return [(r.outcome, r.promise, short(r.check), reason(r)) for r in records if r.outcome != "passed"]


def tightest(records: Sequence[Record], count: int = TIGHTEST) -> list[tuple[str, str, str, str]]:
    """promise, check, quantity and measured ÷ allowed of the passes nearest to their allowance."""
    passed = [(r, h) for r in records if r.outcome == "passed" and (h := r.headroom) is not None]
    passed.sort(key=lambda pair: -pair[1])
    return [
        (r.promise, short(r.check), str((r.tightest or {}).get("quantity", "")), f"{h:.2f}") for r, h in passed[:count]
    ]


def by_promise(records: Sequence[Record]) -> list[tuple[str, str, int, str, str, str]]:
    """promise, sentence, checks, what they came to, largest measured ÷ allowed, seconds."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.promise].append(record)
    rows = []
    for promise, group in sorted(groups.items(), key=lambda pair: order(pair[0])):
        outcomes: dict[str, int] = defaultdict(int)
        for record in group:
            outcomes[record.outcome] += 1
        told = ", ".join(f"{n} {word}" for word, n in outcomes.items())
        headrooms = [h for r in group if (h := r.headroom) is not None]
        most = f"{max(headrooms):.2f}" if headrooms else "exact"
        rows.append((promise, group[0].statement, len(group), told, most, f"{sum(r.seconds for r in group):.0f}"))
    return rows


# Headers of the tables of `waivers` and `erosion`, and what is said under the second.
WAIVERS = ("promise", "checks", "reason", "owner", "age", "until", "link")
EROSION = ("slack of", "allowed", "calibrated", "ratio", "reason", "owner", "until")
LEDGER = ("slack of", "allowed", "healthy at most", "samples", "measured", "by")
ERODED = "A ratio above 1 is erosion: a fault of that size is no longer seen."


def waivers(records: Sequence[Record], run: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """promise, checks, reason, owner, age in days at the run, end, link: of each waiver that excused something."""
    groups: dict[tuple[str, ...], int] = defaultdict(int)
    for record in records:
        if record.waiver:
            told = [str(record.waiver.get(key, "")) for key in ("reason", "owner", "since", "expires", "link")]
            groups[record.promise, *told] += 1
    return [
        (promise, str(count), reason, owner, _age(since, str(run.get("started", ""))), expires, link)
        for (promise, reason, owner, since, expires, link), count in sorted(
            groups.items(), key=lambda pair: (order(pair[0][0]), pair[0])
        )
    ]


def excused(records: Numbered) -> list[tuple[Mapping[str, str], Numbered]]:
    """Each waiver with the checks that it excused, the one that excused the most first."""
    groups: dict[tuple[tuple[str, str], ...], list[tuple[int, Record]]] = defaultdict(list)
    for line, record in records:
        if record.outcome == "waived":
            groups[tuple(sorted((record.waiver or {}).items()))].append((line, record))
    return [(dict(waiver), groups[waiver]) for waiver in sorted(groups, key=lambda w: -len(groups[w]))]


def _age(since: str, started: str) -> str:
    try:
        begun, now = datetime.date.fromisoformat(since), datetime.date.fromisoformat(started[:10])
    except ValueError:
        return "not said"
    return f"{(now - begun).days} days"


def erosion(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """promise, quantity and dtype; allowed, calibrated, ratio; reason, owner, end: of slacks that were changed."""
    changed = {name: told for r in records for name, told in r.evidence.get("slacks", {}).items()}
    return [
        (
            name,
            f"{told['slack']:g}",
            f"{told['calibrated']:g}",
            f"{told['slack'] / told['calibrated']:.3g}",
            *(str(told[key]) for key in ("reason", "owner", "expires")),
        )
        for name, told in sorted(changed.items(), key=lambda pair: (order(pair[0].split(",")[0]), pair[0]))
    ]


def ledger(run: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """promise, quantity and dtype; allowed, healthy maximum, samples, day, table and check: of a run's slacks."""
    return [
        (
            f"{promise}, {quantity}, {dtype}",
            f"{entry['slack']:g}",
            f"{entry['healthy']:.3g}",
            f"{entry['samples']:,}",
            entry["measured"],
            entry["where"],
        )
        for promise, quantities in sorted(run.get("slacks", {}).items(), key=lambda pair: order(pair[0]))
        for quantity, dtypes in quantities.items()
        for dtype, entry in dtypes.items()
    ]


# A column of the table of agreement for each: its header, and the name that evidence has for it.
METRICS = {
    "mean KL": "mean KL divergence",
    "99 % KL": "99th percentile of KL divergence",
    "top-1": "top-1 agreement",
    "perplexity ratio": "perplexity ratio",
    "TV distance": "total variation distance",
}


def agreement(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """quantizer, device, model, each metric with its interval, tokens and outcome, of checks that measured agreement.

    A check that looked at some positions only is no row.
    """
    rows = []
    for record in records:
        measured, about = record.evidence.get("agreement"), record.parameters
        if measured is None or "stretch" in about:
            continue
        cells = [_interval(measured.get(name)) for name in METRICS.values()]
        tokens = str(record.evidence.get("tokens", ""))
        names = (about.get("quantizer", record.subject), record.device, about.get("case", ""))
        rows.append((*names, *cells, tokens, record.outcome))
    return rows


def _interval(found: Sequence[Any] | None) -> str:
    """An estimate with its interval, to four digits."""
    if found is None:
        return ""
    estimate, low, high = (f"{float(x):.4g}" for x in found)
    return f"{estimate} ({low} … {high})"


def missing(records: Sequence[Record], run: Mapping[str, Any]) -> list[str]:
    """What a run says of what it did not look at: promises without a check, and its notes."""
    silent = sorted(set(run.get("terms", {}).get("owed", ())) - {r.promise for r in records}, key=order)
    return [*([f"no check of {', '.join(silent)}"] * bool(silent)), *run.get("notes", ())]


def reproduce(run: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """How to see the same again: the suite, the stack, the model, the command."""
    versions = environment.get("versions", {})
    lines = [
        f"# Python {environment.get('python', '?')}; {', '.join(f'{k} {v}' for k, v in versions.items())}",
        f"# model: {run.get('model', 'none')}; seed {run.get('seed', 0)}",
        f"git checkout {run['suite'].removesuffix('-dirty')}" if run.get("suite") else "",
        "# … with files that were changed after it" if run.get("suite", "").endswith("-dirty") else "",
        f"# {', '.join(kept)}, as it was read, lies beside this report" if (kept := run.get("kept")) else "",
        str(run.get("command", "")),
    ]
    return "\n".join(line for line in lines if line)


def facts(run: Mapping[str, Any], environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run stood on, by name."""
    versions, kernels = environment.get("versions", {}), environment.get("kernels", {})
    return [
        ("deployment", run.get("deployment", "")),
        ("model", run.get("model", "")),
        ("when", "; gone on with on ".join([run.get("started", ""), *run.get("resumed", ())])),
        ("stack", stack(environment)),
        ("CUDA, cuDNN", f"{environment.get('cuda') or 'none'}, {environment.get('cudnn') or 'none'}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items())),
        ("attention kernels", "; ".join(f"{k}: {', '.join(v)}" for k, v in kernels.items())),
        ("suite", run.get("suite", "")),
        ("seed, seconds", f"{run.get('seed', 0)}, {run.get('seconds', 0):.0f}"),
        *([("teeth", run["teeth"])] if "teeth" in run else []),
    ]


def ratios(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """what, subject, device, ratio with its interval, outcome, of checks that timed two ways in turn."""
    found = [(r, timed) for r in records if (timed := r.evidence.get("ratio"))]
    return [(timed["what"], r.subject, r.device, _interval(timed["ratio"]), r.outcome) for r, timed in found]


def stack(environment: Mapping[str, Any]) -> str:
    """The stack in one line."""
    gpus = ", ".join(f"{g['name']} (sm {g['capability']})" for g in environment.get("gpus", ())) or "no GPU"
    versions = environment.get("versions", {})
    named = [f"{name} {versions[name]}" for name in ("torch", "transformers", "bitsandbytes") if name in versions]
    driver = [f"driver {environment['driver']}"] if environment.get("driver") else []
    return " · ".join(
        [gpus, *driver, *named, f"Python {environment.get('python', '?')}", str(environment.get("cpu", ""))]
    )


def terminal(records: Sequence[Record], verdict: Verdict, notes: Sequence[str]) -> str:
    """The end of a run's output."""
    blocks = []
    if bad := not_passed(records):
        blocks.append(tabulate(bad, ("outcome", "promise", "check", "why"), tablefmt="simple"))
    if near := tightest(records):
        blocks.append(
            tabulate(near, ("promise", "tightest passes", "quantity", "measured ÷ allowed"), disable_numparse=True)
        )
    blocks.extend(notes)
    blocks.append(verdict.sentence)
    return "\n\n".join(blocks)
