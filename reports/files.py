"""The files of a run's folder, and the checksums by which they belong together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8", errors="replace")  # a path need not be text
    part.replace(path)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a mapping so that two of them can be told apart line by line."""
    write_text(path, json.dumps(data, indent=2, sort_keys=True) + "\n")


def checksum(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """The checksum of each file of a run but run.json, which holds them."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / "run.json")
    return {f.relative_to(folder).as_posix(): checksum(f) for f in files}
