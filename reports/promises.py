"""The promises, read from the first docstring line of the tests that hold them.

`python -m reports.promises` writes their table into README.md; with --check it only says whether it is true.
"""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tabulate import tabulate

from reports.record import order

ROOT = Path(__file__).parent.parent
FIRST_LINE = re.compile(r"(?P<id>[A-Z]+-\d+): (?P<statement>\S.*\bMUST\b.*)")
BEGIN, END = "<!-- promises -->", "<!-- /promises -->"


@dataclass(frozen=True)
class Promise:
    """One sentence with MUST, its id, and where it is held.

    It is owed only where its `capability`, if it has one, is claimed, and where one of its `subjects`, if they are not
    on every stack, is there.
    """

    id: str
    statement: str
    area: str
    file: str
    function: str
    capability: str = ""
    subjects: str = ""


def parse(docstring: str | None) -> tuple[str, str] | None:
    """(id, statement) of a check's docstring, None for a function that is no check."""
    first = (docstring or "").strip().split("\n\n")[0]
    match = FIRST_LINE.fullmatch(" ".join(first.split()))
    return (match["id"], match["statement"]) if match else None


def find(suites: Path = ROOT / "suites") -> list[Promise]:
    """Every promise under a folder of suites. Raises ValueError where one id stands for two sentences."""
    found: list[Promise] = []
    for path in sorted(suites.rglob("test_*.py")):
        file = path.relative_to(suites.parent).as_posix()
        found += [Promise(*said, path.parent.name, file, *rest) for said, *rest in _held(path, path.stat().st_mtime_ns)]
    sentences: dict[str, str] = {}
    for promise in found:
        if sentences.setdefault(promise.id, promise.statement) != promise.statement:
            raise ValueError(f"{promise.file}: {promise.id} already stands for another sentence")
    return found


@cache
def _held(path: Path, changed: int) -> list[tuple[tuple[str, str], str, str, str]]:
    """Each promise of a file, the function that holds it, and what it names; read once as long as it is the same."""
    functions = [n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)]
    return [
        (said, n.name, _named(n, "capability"), _named(n, "optional"))
        for n in functions
        if (said := parse(ast.get_docstring(n)))
    ]


def _named(node: ast.FunctionDef, mark: str) -> str:
    """What `@pytest.mark.<mark>("name")` names."""
    marks = [d for d in node.decorator_list if isinstance(d, ast.Call) and ast.unparse(d.func).endswith(f".{mark}")]
    return next((str(ast.literal_eval(mark.args[0])) for mark in marks), "")


def table(promises: list[Promise]) -> str:
    """The promises as a Markdown table, a row each, in the order of their ids."""
    said: dict[str, str] = {}
    where: dict[str, dict[str, None]] = {}
    for p in promises:
        said[p.id] = p.statement
        where.setdefault(p.id, {})[f"[{p.file.split('/', 1)[1]}]({p.file})"] = None
    rows = [(key, said[key], ", ".join(where[key])) for key in sorted(said, key=order)]
    return tabulate(rows, ("id", "promise", "held in"), tablefmt="github")


def main(arguments: list[str]) -> int:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    wanted = f"{head}{BEGIN}\n{table(find())}\n{END}{tail}"
    if wanted == text:
        return 0
    if "--check" in arguments:
        print("README.md: the table of promises is not what the tests say: run `python -m reports.promises`")
        return 1
    readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
