"""The files of a run's folder, and the checksums by which they belong together."""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def legible(path: Path) -> str:
    """A path for a person to read: it need not be text, and what is not is a question mark."""
    return str(path).encode(errors="replace").decode()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8", errors="replace")  # a path need not be text
    part.replace(path)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a mapping so that two of them can be told apart line by line."""
    write_text(path, json.dumps(data, indent=2, sort_keys=True) + "\n")


def hold(folder: Path, holder: object) -> Callable[[], object]:
    """Keep other runs out of a folder, until what is returned is called or `holder` is gone.

    Raises FileExistsError where it is held already. Where a system or a file system has no locks, nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        return lambda: None
    place = os.open(folder, os.O_RDONLY)
    free = weakref.finalize(holder, os.close, place)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        free()
        raise FileExistsError(f"another run is writing to {folder}: wait, or give this one its own folder") from error
    except OSError:
        pass
    return free


def checksum(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """The checksum of each file of a run but run.json, which holds them."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / "run.json")
    return {f.relative_to(folder).as_posix(): checksum(f) for f in files}
