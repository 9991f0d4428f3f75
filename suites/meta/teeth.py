"""Before you trust green, see it red: `python -m suites.meta.teeth` injects each fault and asks who notices.

Detected is a fault of which a judgement of its own area failed, while the same check passed without it in the same
process; a crash is no detection. What a fault came to is a line of teeth.jsonl as soon as it is known: what is there of
this suite, on this stack, is not asked again. Exits with 1 where a fault was missed, with 5 where none was asked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fixtures import environment, folders
from reports import run, teeth
from reports.files import write_text
from suites.meta.asking import MARKS, ROOT, Asker, asked_of, devices_of, row_of
from suites.meta.faults import FAULTS, Fault
from suites.meta.faults.equivalent import EQUIVALENT, Equivalent

AREAS = sorted({fault.area for fault in FAULTS.values()})

# What is held to seconds wants the machine for itself: on an H200 that eight processes shared, a ratio of 0.51 came
# with an interval from 0.29 to 0.92, and was no verdict.
TIMED = "claims/test_speed.py"


@dataclass
class Journal:
    """teeth.jsonl: what is known already, and what comes to it. `common`: what every line says of suite and stack."""

    path: Path
    common: Mapping[str, Any]

    def add(self, row: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({**row, **self.common}, sort_keys=True)
        with self.path.open("a+b") as file:
            cut = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write(b"\n" * bool(cut) + line.encode() + b"\n")

    def rows(self) -> list[dict[str, Any]]:
        """Of each fault what was found last, of this suite on this stack."""
        found = teeth.read(self.path) if self.path.exists() else []
        common = json.loads(json.dumps(self.common))
        mine = [row for row in found if {key: row.get(key) for key in common} == common]
        return list({row["fault"]: row for row in mine}.values())


def common(device: str = "", dtype: str = "") -> dict[str, Any]:
    """What two answers must have in common for one to stand for the other."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "suites" / "meta").glob("**/*.py")):
        if path.parent.name == "faults" or path.name in ("asking.py", "teeth.py"):
            digest.update(path.name.encode() + path.read_bytes())
    here = teeth.stack(environment.probe().as_dict())
    asked = {"device": device, "dtype": dtype}
    return {"programs": run.checksum(), "faults": digest.hexdigest()[:16], "stack": here, "asked": asked}


def groups(faults: Iterable[Fault | Equivalent]) -> list[list[str]]:
    """Names of faults, those together that are asked of one file, which have questions in common; the largest first."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for fault in faults:
        found[(fault.checks[0], *fault.options)].append(fault.name)
    return sorted(found.values(), key=lambda group: (-len(group), group))


def shard(of: Sequence[list[str]], part: str) -> list[list[str]]:
    """The i-th of n parts, `i/n`, which together are all and have about as many faults each."""
    index, count = (int(number) for number in part.split("/"))
    if not 1 <= index <= count:
        raise ValueError(f"{part} is no part: the first of two is 1/2")
    parts: list[list[list[str]]] = [[] for _ in range(count)]
    for group in of:
        min(parts, key=lambda chosen: sum(map(len, chosen))).append(group)
    return parts[index - 1]


def work(wanted: Iterable[list[str]], now: Any, journal: Journal, threads: int) -> None:
    """Ask groups of faults one after the other, as long as whoever began this is there; `now` names the one at hand."""
    parent, every = os.getppid(), FAULTS | EQUIVALENT
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        asker = Asker(Path(folder), **journal.common["asked"])
        for name in (name for group in wanted for name in group):
            if os.getppid() != parent:
                return
            now.value = name.encode()
            row = asked_of(every[name], asker)
            journal.add(row)
            now.value = b""
            print(*_progress(row), sep="\n", flush=True)


def work_apart(*what: Any) -> None:
    """The same in a process of multiprocessing, and nothing of it is left behind."""
    try:
        work(*what)
    finally:
        folders.remove()


def _progress(row: Mapping[str, Any]) -> Iterator[str]:
    for device, end in row["devices"].items():
        why = f": {end['why']}" if end["why"] else ""
        yield f"{row['promise']} {row['fault']} on {device}: {end['outcome']}{why} ({row['seconds']:.1f} s)"


def conduct(wanted: Sequence[list[str]], journal: Journal, workers: int, threads: int) -> None:
    """Ask all that the journal does not know, in processes of their own: a fault that ends its process has crashed.

    They are forks of this one, which has imported everything; with CUDA at work in here they begin anew.
    """
    forks = sys.platform == "linux" and not torch.cuda.is_initialized()
    context: Any = multiprocessing.get_context("fork" if forks else "spawn")
    every = FAULTS | EQUIVALENT
    if not workers:
        work(_left(wanted, journal), context.Array("c", 128, lock=False), journal, threads)
    while workers and (left := _left(wanted, journal)):
        queue, crew = context.SimpleQueue(), []
        for _ in range(min(workers, len(left))):
            now = context.Array("c", 128, lock=False)
            process = context.Process(
                target=work_apart, args=(iter(queue.get, None), now, journal, threads), daemon=True
            )
            process.start()
            crew.append((process, now))
        for group in [*left, *[None] * len(crew)]:
            queue.put(group)
        for process, now in crew:
            process.join()
            if process.exitcode and not now.value:
                raise RuntimeError(f"a worker ended with {process.exitcode} beside its faults")
            if process.exitcode:
                journal.add(_crashed(every[now.value.decode()], f"its process ended with {process.exitcode}", journal))


def _crashed(fault: Fault | Equivalent, how: str, journal: Journal) -> dict[str, Any]:
    end = {"outcome": "crashed", "why": how, "rejected": [], "dtypes": {}, "alarms": []}
    return row_of(fault, dict.fromkeys(devices_of(fault, journal.common["asked"]["device"]), end), 0.0)


def _left(wanted: Iterable[list[str]], journal: Journal) -> list[list[str]]:
    known = {row["fault"] for row in journal.rows()}
    left = [[name for name in group if name not in known] for group in wanted]
    return [group for group in left if group]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m suites.meta.teeth", description=__doc__)
    parser.add_argument("faults", nargs="*", help="names of faults; all, if none is named")
    parser.add_argument("--area", choices=AREAS, action="append", help="only this area's; may be given several times")
    parser.add_argument("--device", choices=sorted(MARKS), default="", help="on this device only")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="", help="in this dtype only")
    parser.add_argument("--workers", type=int, default=1, help="processes; 0 asks in this one")
    parser.add_argument("--shard", default="1/1", help="a part of all, such as 1/2; parts may share a folder")
    parser.add_argument("--out", type=Path, default=teeth.FOLDERS[0], help="folder of teeth.jsonl and teeth.md")
    chosen = parser.parse_args(arguments)
    every = FAULTS | (EQUIVALENT if chosen.device != "cuda" else {})
    if unknown := set(chosen.faults) - set(every):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}")
    asked = [every[n] for n in chosen.faults or every if not chosen.area or every[n].area in chosen.area]
    wanted, start, threads = shard(groups(asked), chosen.shard), time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(1)  # a fork does not inherit the threads that this process has started
    journal = Journal(chosen.out / "teeth.jsonl", common(chosen.device, chosen.dtype))
    for alone in (False, True):
        part = [group for group in wanted if (every[group[0]].checks[0] == TIMED) is alone]
        workers = min(chosen.workers, 1) if alone else chosen.workers
        conduct(part, journal, workers, max(1, threads // max(1, workers)))
    torch.set_num_threads(threads)
    names = {name for group in wanted for name in group}
    rows = sorted((r for r in journal.rows() if r["fault"] in names), key=lambda r: list(every).index(r["fault"]))
    if not rows:
        print(f"no fault was asked: part {chosen.shard} of {len(asked)} holds none")
        return 5
    write_text(chosen.out / "teeth.md", teeth.markdown(rows))
    for missed in teeth.misses(rows):
        print("missed:", *missed, sep="  ")
    print(f"{teeth.sentence(rows)}; {time.monotonic() - start:.0f} s: {chosen.out / 'teeth.md'}")
    return int(bool(teeth.misses(rows))) if teeth.rates(rows) else 5


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
