"""What the harness costs of a run: `python -m suites.meta.overhead -- -n 2`.

Runs pytest with what follows `--`, looks every 10 ms of processor time where each of its processes is, and says what
share went to the harness, and to which file of it. To models goes what runs in a library below the suite's own code, to
oracles and kernels what the files of WORK compute, with libraries that are imported; all else is the harness. On a GPU
it says nothing: Python waits for the device wherever it asks for a number.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).parent.parent.parent
FOLDER, TICK = "SPIRITLEVEL_SAMPLES", 0.01
# Files of ours that compute what is right, or call a kernel with nothing between; the first word of a library's file.
WORK = ("fixtures/oracles/", *(f"fixtures/{n}.py" for n in ("attention", "beams", "flash", "flex", "references")))
WORK += ("fixtures/conventions.py", "fixtures/rounded.py", "fixtures/yardstick.py")
MODELS = (
    "transformers",
    "bitsandbytes",
    "optimum",
    "hqq",
    "torchao",
    "tokenizers",
    "accelerate",
    "safetensors",
    "gguf",
)
MODELS += ("jinja2", "torch/nn", "torch/_inductor", "torch/_dynamo", "torch/_higher_order_ops")
SHOWN = 0.001
INSTALLED = "site-packages/"
RUNNERS = ("pytest", "_pytest", "pluggy", "xdist", "execnet")


def where(frame: FrameType | None) -> tuple[str, bool]:
    """The innermost file of ours that is being run, and whether it is at work: see above."""
    place, work, below = "pytest", False, True
    while frame is not None:
        file = frame.f_code.co_filename
        library = file.partition(INSTALLED)[2]
        if below and library.startswith(MODELS):
            work = True
        if library and frame.f_code.co_name == "<module>" and not library.startswith(RUNNERS):
            return "imports", True
        if below and not library and file.startswith(f"{ROOT}/"):
            place, below = file.removeprefix(f"{ROOT}/"), False
        frame = frame.f_back
    return place, not below and (work or place.startswith(WORK))


def watch(folder: Path) -> None:
    """Look where this process is, until it ends; what was seen is a file of the folder."""
    seen: Counter[tuple[str, bool]] = Counter()
    last = time.process_time()

    def look(number: int, frame: FrameType | None) -> None:
        """Charge the time since the last look, which is longer where a call into C kept the signal waiting."""
        nonlocal last
        now = time.process_time()
        seen[where(frame)] += now - last  # type: ignore[assignment]
        last = now

    def keep() -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        found = [[*place, seconds] for place, seconds in seen.items()]
        (folder / f"{os.getpid()}.json").write_text(json.dumps(found), encoding="utf-8")

    signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, TICK, TICK)
    atexit.register(keep)
    os.register_at_fork(after_in_child=lambda: atexit.unregister(keep))


if folder := os.environ.get(FOLDER):  # as a plugin, which is loaded before anything else
    watch(Path(folder))


def told(seen: dict[tuple[str, bool], float]) -> str:
    """The share of the harness, and of each file of it that has a thousandth or more."""
    total = sum(seen.values())
    own = Counter({place: seconds / total for (place, work), seconds in seen.items() if not work})
    rows: list[Any] = [(place, f"{share:.1%}") for place, share in own.most_common() if share >= SHOWN]
    said = f"the harness: {sum(own.values()):.1%} of {total:.0f} s of processor time"
    return f"{tabulate(rows, ('harness', 'share'))}\n\n{said}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ask", nargs="*", help="what goes to pytest")
    asked = parser.parse_args(arguments).ask
    with tempfile.TemporaryDirectory() as samples:
        command = [sys.executable, "-m", "pytest", "-p", "suites.meta.overhead", *asked]
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, FOLDER: samples}).returncode
        seen: Counter[tuple[str, bool]] = Counter()
        for file in Path(samples).iterdir():
            for place, work, seconds in json.loads(file.read_text(encoding="utf-8")):
                if ROOT / place != Path(__file__):  # the watch itself
                    seen[place, work] += seconds
    print(told(seen))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
