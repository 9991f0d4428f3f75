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


def main(arguments: list[str]) -> int:
    found = constraints()
    if "torch===" not in found:
        print("no torch is installed in this environment: nothing is deployed here that could be tested")
        return 1
    target = Path(arguments[0])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(found, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
