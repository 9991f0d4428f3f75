"""What a record says in words: why, of what, and how to see it again, with no one's home folder in it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def homeless(text: str) -> str:
    """The text with `~` for the user's home folder."""
    return text.replace(str(Path.home()), "~")


def rerun(check: str, seed: int, given: Mapping[str, Any]) -> str:
    """The command that runs one check again, with those of the `given` options that were used."""
    used = [shlex.quote(homeless(f"--{name}={value}")) for name, value in given.items() if value]
    return " ".join(["pytest", shlex.quote(check), f"--seed {seed}", *used])


def message(about: Mapping[str, Any], outcome: str, why: str, rerun: str) -> str:
    """Why a check ended as it did; where it must be looked into, from its promise to its rerun."""
    if outcome in ("failed", "waived", "inconclusive"):
        subject = f"subject: {about['subject'] or 'none'} on {about['device']}"
        why = f"{about['promise']}: {about['statement']}\n{why}\n{subject}\nrerun: {rerun}"
    return homeless(why)
