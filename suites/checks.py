"""What pytest's items are to a conformance run: which hold a promise, and about whom."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fixtures.judgement import Judge

SUITES = Path(__file__).parent

# A check's promise: id and statement. Without it, an item is no check.
PROMISE = pytest.StashKey[tuple[str, str]]()


def of(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Those items that are checks."""
    return [item for item in items if PROMISE in item.stash]


def promised(items: Iterable[pytest.Item]) -> set[str]:
    """Ids of the promises that some checks hold."""
    return {item.stash[PROMISE][0] for item in items}


def area(item: pytest.Item) -> str:
    """The folder that a check is in."""
    return item.path.parent.name


def judge(item: pytest.Item) -> Judge:
    """The judge that a check asked for; one that has judged nothing where it asked for none."""
    return getattr(item, "funcargs", {}).get("judge") or Judge(item.stash[PROMISE][0])


def about(item: pytest.Item) -> dict[str, Any]:
    """What a record says of a check before it has run."""
    promise, statement = item.stash[PROMISE]
    params = getattr(getattr(item, "callspec", None), "params", {})
    return {
        "check": item.nodeid,
        "promise": promise,
        "statement": statement,
        "area": area(item),
        "subject": ", ".join(str(v.name) for v in params.values() if hasattr(v, "refuses")),
        "device": getattr(params.get("device"), "name", params.get("device", "cpu")),
        "parameters": {k: _named(v) for k, v in params.items()},
    }


def _named(value: Any) -> str:
    return str(getattr(value, "name", getattr(value, "__name__", value))).removeprefix("torch.")
