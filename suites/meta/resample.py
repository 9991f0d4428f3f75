"""What the reference models' contexts cost, over trainings and resamplings of the documents, and what is allowed.

`python -m suites.meta.resample FOLDER …` takes a folder of each training (fixtures/checkpoints is always one of them),
draws the documents a hundred times with replacement, as many as each tier asks about, and writes
`fixtures/contexts.toml`. What is allowed to grow is twice the largest upper end of an interval, a tenth of a nat at
least; what must be seen is half the smallest lower end.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fixtures import checkpoints, text
from fixtures.checkpoints import LONGEST, TRAINED
from fixtures.references import ALLOWED, FEW, References, difference
from fixtures.statistics import Interval

RESAMPLINGS = 100
LEAST = 0.1
CPU = torch.device("cpu")
ONE_AND_A_HALF = TRAINED * 3 // 2
Losses = Callable[[str, int], Tensor]

# key of contexts.toml -> whether it bounds growth from above, and each interval that it is about
GROWTH: dict[str, Callable[[Losses], Iterator[Interval]]] = {
    "holds": lambda at: (
        difference(at(name, n), at(name, TRAINED))
        for name in ("alibi", "rope-yarn", "rope-linear")
        for n in (2 * TRAINED, 4 * TRAINED, LONGEST)
    ),
    "untrained": lambda at: (difference(at(name, n), at(name, TRAINED)) for name, n in UNTRAINED),
    "dearer": lambda at: (difference(at(name, n), at("rope", TRAINED)) for name, n in UNTRAINED),
}
POWER: dict[str, Callable[[Losses], Iterator[Interval]]] = {
    "collapsed": lambda at: (
        difference(at(name, LONGEST), at(name, TRAINED)) for name in ("rope", "learned", "sinusoidal")
    ),
    "later": lambda at: (
        difference(at(name, ONE_AND_A_HALF) - at(name, TRAINED), at("rope", ONE_AND_A_HALF) - at("rope", TRAINED))
        for name in ("learned", "sinusoidal")
    ),
}
UNTRAINED = (("rope-yarn-untrained", LONGEST), ("rope-dynamic-untrained", 4 * TRAINED))
SAID = {
    "holds": "more at a longer context, of an encoding that is made for it",
    "untrained": "more at a longer context, of a scaling that the weights were not trained for",
    "dearer": "the same, more than plain RoPE at 128",
    "collapsed": "more at 1,024, of positions that do not extrapolate: at least",
    "later": "that learned and sinusoidal positions grow more than plain RoPE at 192: at least",
}


def measure(folders: list[Path]) -> dict[str, list[Interval]]:
    """Every interval of every quantity, over folders, tiers and resamplings."""
    found: dict[str, list[Interval]] = {key: [] for key in SAID}
    for number, folder in enumerate(folders):
        draw = torch.Generator().manual_seed(number)
        for tier in ({}, FEW):
            count = tier.get("documents", 48)
            all_of_them = References(folder, **{**tier, "documents": 48})
            for _ in range(RESAMPLINGS):
                rows = torch.randint(48, (count,), generator=draw)

                def at(name: str, context: int, rows: Tensor = rows, losses: References = all_of_them) -> Tensor:
                    return losses.losses(name, context, CPU)[rows]

                for key, intervals in {**GROWTH, **POWER}.items():
                    found[key] += intervals(at)
            print(folder, tier, {key: len(intervals) for key, intervals in found.items()}, flush=True)
    return found


def write(found: dict[str, list[Interval]], seeds: list[int]) -> str:
    """The text of contexts.toml; what is said of a served model stays as it is."""
    served = "[served]" + ALLOWED.read_text(encoding="utf-8").split("[served]", 1)[1]
    lines = [
        "# What a length of context may cost, on the same target tokens.",
        "#",
        "# Written by `python -m suites.meta.resample`, but for what is said of a served model. Reference models, in",
        f"# nats a byte: trainings of seeds {', '.join(map(str, seeds))}, {RESAMPLINGS} resamplings of the documents",
        f"# for each tier; text {text.checksum()[:16]}.",
        "[reference]",
    ]
    for key, intervals in found.items():
        if key in GROWTH:
            healthy = max(i.high for i in intervals)
            allowed = max(LEAST, math.ceil(200 * healthy) / 100)
        else:
            healthy = min(i.low for i in intervals)
            allowed = math.floor(50 * healthy) / 100
        end = "highest upper" if key in GROWTH else "lowest lower"
        lines += [f"# {SAID[key]}; {end} end of {len(intervals):,} intervals: {healthy:.4f}", f"{key} = {allowed:g}"]
    return "\n".join(lines) + "\n\n" + served


def main(arguments: list[str]) -> int:
    folders = [checkpoints.FOLDER, *map(Path, arguments)]
    found = measure(folders)
    seeds = [int(checkpoints.facts("rope", folder)["seed"]) for folder in folders]
    ALLOWED.write_text(write(found, seeds), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
