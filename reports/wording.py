"""What a record says in words: why, of what, and how to see it again, with no one's home folder or secret in it."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

# Environment variables of such names hold what is nobody's business, unless it is too short to be a secret.
SECRET = re.compile(r"TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE|KEY", re.IGNORECASE)
SHORT = 8
LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # as in https://user:password@host


def homeless(text: str) -> str:
    """The text with `~` for the user's home folder."""
    return _without(text, _homes())


def private(value: Any) -> Any:
    """What may be shown of records, facts or a text: no home folder, secret of the environment, or login of a URL."""
    return _private(value, sorted(_secrets(), key=lambda pair: -len(pair[0])), _homes())


def may_tell(line: str) -> bool:
    """Whether a line of JSON may hold what is not `private`: of most records this is sooner known than taken out."""
    kept = *(secret for secret, _ in _secrets()), *_homes()
    return "://" in line or any(_in_json(said) in line for said in kept)


@cache
def _in_json(said: str) -> str:
    return json.dumps(said)[1:-1]


def _secrets() -> list[tuple[str, str]]:
    return [(v, f"${name}") for name, v in os.environ.items() if _is_secret(name) and len(v) >= SHORT]


@cache
def _is_secret(name: str) -> bool:
    return bool(SECRET.search(name))


def _private(value: Any, secrets: Sequence[tuple[str, str]], homes: Sequence[str]) -> Any:
    if isinstance(value, str):
        for secret, name in secrets:
            value = value.replace(secret, name)
        return _without(LOGIN.sub("…", value) if "://" in value else value, homes)
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(_private(v, secrets, homes) for v in value)
    if isinstance(value, Mapping):
        return {_private(str(k), secrets, homes): _private(v, secrets, homes) for k, v in value.items()}
    return value


def _homes() -> list[str]:
    """The home folder, as it is called and as it is; some containers call / one, and that is no one's."""
    return _called(os.path.expanduser("~"))  # noqa: PTH111 - pathlib's takes ten times as long, for every record


@cache
def _called(home: str) -> list[str]:
    return [str(called) for called in {Path(home), Path(home).resolve()} if called.name]


def _without(text: str, homes: Sequence[str]) -> str:
    for home in homes:
        if home in text:
            text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w-])", "~", text)
    return text


def rerun(check: str, seed: int, option: Any) -> str:
    """The command that runs one check again on the same subjects, from the options of the run."""
    said = [
        f"--{name}={value}"
        for name in ("deployment", "model", "shape", "checkpoints", "policy")
        if (value := getattr(option, name))
    ]
    flags = "trust_remote_code", "allow_pickle", "benchmark_enable"
    said += [f"--{name.replace('_', '-')}" for name in flags if getattr(option, name)]
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
