"""Which versions are deployed, as a pip constraints file: `python -m reports.deployed FILE`.

Installing this suite's needs against that file adds what is missing and moves nothing that is under test: where a
version is out of range, pip says so and stops.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

UNDER_TEST = ("torch", "transformers", "bitsandbytes", "optimum", "accelerate", "tokenizers", "triton", "flash-attn")


def constraints() -> str:
    """One `name===version` a line for each of them that is installed, local build labels included."""
    lines = []
    for name in UNDER_TEST:
        try:
            lines.append(f"{name}==={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    Path(sys.argv[1]).write_text(constraints(), encoding="utf-8")
