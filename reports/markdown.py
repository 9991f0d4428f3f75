"""Texts of others as Markdown: nothing that a run says becomes a table, a tag, a link or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate


def cell(value: Any) -> str:
    """Text that cannot break out of a table's cell, and is neither a tag, a link nor a picture."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """A table of such texts."""
    return tabulate([[cell(c) for c in row] for row in rows], header, tablefmt="github", disable_numparse=True)
