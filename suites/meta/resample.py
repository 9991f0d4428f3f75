"""What the reference models' contexts cost, over trainings and resamplings of the documents, and what is allowed.

`python -m suites.meta.resample FOLDER …` takes a folder of each training (fixtures/checkpoints is always one of them),
draws the documents a hundred times with replacement, as many as each tier asks about, and writes
`fixtures/contexts.toml`. What is allowed to grow is twice the largest upper end of an interval, a tenth of a nat at
least; what must be seen is half the smallest lower end.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable
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
Losses = Callable[[str, int], Tensor]

# table of contexts.toml -> the model that a row is about, and how one of its intervals is made
Quantity = Callable[[Losses, str, int], Interval]
UNTRAINED = {"rope-yarn-untrained": (LONGEST,), "rope-dynamic-untrained": (4 * TRAINED,)}
MADE = dict.fromkeys(("alibi", "rope-yarn", "rope-linear"), (2 * TRAINED, 4 * TRAINED, LONGEST))
BREAKING = dict.fromkeys(("rope", "learned", "sinusoidal"), (LONGEST,))
LATER = dict.fromkeys(("learned", "sinusoidal"), (TRAINED * 3 // 2,))


def _grown(at: Losses, name: str, context: int) -> Interval:
    return difference(at(name, context), at(name, TRAINED))


def _dearer(at: Losses, name: str, context: int) -> Interval:
    return difference(at(name, context), at("rope", TRAINED))


def _behind(at: Losses, name: str, context: int) -> Interval:
    return difference(at(name, context) - at(name, TRAINED), at("rope", context) - at("rope", TRAINED))


TABLES: dict[str, tuple[str, bool, Quantity, dict[str, tuple[int, ...]]]] = {
    "grown": ("more at a longer context than at 128, at most", True, _grown, MADE | UNTRAINED),
    "dearer": ("more at a longer context than plain RoPE at 128, at most", True, _dearer, UNTRAINED),
    "collapsed": ("more at 1,024 than at 128, at least", False, _grown, BREAKING),
    "later": ("that plain RoPE at 192 has grown less, at least", False, _behind, LATER),
}


def measure(folders: list[Path]) -> dict[tuple[str, str], list[Interval]]:
    """Every interval of every quantity and model, over folders, tiers and resamplings."""
    found: dict[tuple[str, str], list[Interval]] = defaultdict(list)
    for number, folder in enumerate(folders):
        draw = torch.Generator().manual_seed(number)
        for tier in ({}, FEW):
            losses = References(folder, **{**tier, "documents": 48})
            for _ in range(RESAMPLINGS):
                rows = torch.randint(48, (tier.get("documents", 48),), generator=draw)

                def at(name: str, context: int, rows: Tensor = rows, losses: References = losses) -> Tensor:
                    return losses.losses(name, context, CPU)[rows]

                for table, (_, _, quantity, models) in TABLES.items():
                    for name, lengths in models.items():
                        found[table, name] += [quantity(at, name, length) for length in lengths]
            print(folder, tier, flush=True)
    return found


def write(found: dict[tuple[str, str], list[Interval]], seeds: list[int]) -> str:
    """The text of contexts.toml; what is said of a served model stays as it is."""
    served = "[served]" + ALLOWED.read_text(encoding="utf-8").split("[served]", 1)[1]
    lines = [
        "# What a length of context may cost, on the same target tokens.",
        "#",
        "# Written by `python -m suites.meta.resample`, but for what is said of a served model. Reference models, in",
        f"# nats a byte: trainings of seeds {', '.join(map(str, seeds))}, {RESAMPLINGS} resamplings of the documents",
        f"# for each tier, text {text.checksum()[:16]}. Beside each: the end of the 95 % intervals that is nearest.",
    ]
    for table, (said, above, _, models) in TABLES.items():
        lines += ["", f"# {said}", f"[reference.{table}]"]
        for name in models:
            intervals = found[table, name]
            if above:
                healthy = max(i.high for i in intervals)
                allowed = max(LEAST, math.ceil(200 * healthy) / 100)
            else:
                healthy = min(i.low for i in intervals)
                allowed = math.floor(50 * healthy) / 100
            lines.append(f"{name} = {allowed:g}  # {healthy:.4f} of {len(intervals):,}")
    return "\n".join(lines) + "\n\n" + served


def main(arguments: list[str]) -> int:
    folders = [checkpoints.FOLDER, *map(Path, arguments)]
    found = measure(folders)
    seeds = [int(checkpoints.facts("rope", folder)["seed"]) for folder in folders]
    ALLOWED.write_text(write(found, seeds), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
