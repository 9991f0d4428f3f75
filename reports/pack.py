"""A run as one archive, for an auditor: `python -m reports.pack RUN [ARCHIVE]`.

It holds run.json and the files that run.json has checksums of, so that `python -m reports.verify` says of the unpacked
folder what it says of this one. What does not verify is not packed.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path

from reports.files import checksum, legible
from reports.verify import problems


def pack(folder: Path, archive: Path) -> None:
    """Write the archive, its files in a folder of the run's name."""
    names = ["run.json", *json.loads((folder / "run.json").read_text("utf-8"))["sha256"]]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            packed.write(folder / name, f"{folder.name}/{name}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.pack", description="Pack a run that verifies.")
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("archive", type=Path, nargs="?", help="where to (beside the run: RUN.zip)")
    given = parser.parse_args(arguments)
    folder = given.run.resolve()
    archive = given.archive or folder.with_name(f"{folder.name}.zip")
    if found := problems(folder):
        print("\n".join([*found, f"{legible(Path(folder.name))} does not verify: it is not packed"]))
        return 1
    pack(folder, archive)
    print(f"{legible(archive)}: sha256 {checksum(archive)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
