"""What a record says in words: why, of what, and how to see it again, with no one's home folder in it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def homeless(text: str) -> str:
    """The text with `~` for the user's home folder."""
    return text.replace(str(Path.home()), "~")


def rerun(check: str, seed: int, option: Any) -> str:
    """The command that runs one check again on the same subjects, from the options of the run."""
    said = [
        f"--{name}={value}"
        for name in ("deployment", "model", "checkpoints", "policy")
        if (value := getattr(option, name))
    ]
    said += [f"--{name.replace('_', '-')}" for name in ("trust_remote_code", "allow_pickle") if getattr(option, name)]
    said += ["--tier=full"] * (option.tier == "full")
    plugins = [f"-p {shlex.quote(name)}" for name in option.plugins if not name.startswith("no:")]
    return " ".join(
        ["pytest", shlex.quote(check), f"--seed {seed}", *(shlex.quote(homeless(s)) for s in said), *plugins]
    )


def message(about: Mapping[str, Any], outcome: str, why: str, rerun: str) -> str:
    """Why a check ended as it did; where it must be looked into, from its promise to its rerun."""
    if outcome in ("failed", "waived", "inconclusive"):
        subject = f"subject: {about['subject'] or 'none'} on {about['device']}"
        why = f"{about['promise']}: {about['statement']}\n{why}\n{subject}\nrerun: {rerun}"
    return homeless(why)
