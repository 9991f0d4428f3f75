"""Files that are almost right: a valid tree of tables and lists, changed in a place or three, as TOML or as JSON."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

ODD = [
    "",
    " ",
    "x" * 3000,
    "İ÷模\u202e\x00\x1b[31m",
    "nan",
    "1e400",
    "-1 %",
    "9 GiB",
    "9" * 5000,
    "../..",
    "a,b",
    "*",
]
NUMBERS = [-1, 0, 1, 2**31, 2**63, 10**30, 0.0, -0.5, 1e308, float("nan"), float("inf"), float("-inf")]
PLAIN = (
    st.sampled_from(ODD)
    | st.sampled_from(NUMBERS)
    | st.booleans()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
)
JUNK = PLAIN | st.lists(PLAIN, max_size=2) | st.dictionaries(st.sampled_from(["", "a", "é b"]), PLAIN, max_size=2)
DATES = st.sampled_from(
    [
        datetime.date(1, 1, 1),
        datetime.date(9999, 12, 31),
        datetime.datetime(2999, 1, 1),
        datetime.datetime(2999, 1, 1, tzinfo=datetime.UTC),
        datetime.time(12),
        "2999-01-01",
        "01.02.2999",
    ]
)


@st.composite
def mutated(draw: Any, tree: Any, junk: st.SearchStrategy[Any]) -> Any:
    """The tree with values replaced, removed, renamed, doubled, added or nested once more."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        inside = draw(st.sampled_from(list(_containers(tree))))
        places = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        if not places:
            continue
        place, how = draw(st.sampled_from(places)), draw(st.sampled_from(["replace"] * 3 + ["drop", "add", "nest"]))
        if how == "replace":
            inside[place] = draw(junk)
        elif how == "nest":
            inside[place] = draw(st.sampled_from([{"a": inside[place]}, [inside[place]]]))
        elif isinstance(inside, dict):
            value = inside.pop(place) if how == "drop" else draw(junk)
            if draw(st.booleans()):
                inside[draw(st.sampled_from([f"{place}s", "", "é b", "schema"]))] = value
        elif how == "drop":
            del inside[place]
        else:
            inside.append(copy.deepcopy(inside[place]))
    return tree


def _containers(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (dict, list)):
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _containers(value)


def toml(tree: dict[str, Any]) -> str:
    """A tree as TOML, each key of the top level on a line of its own."""
    return "".join(f"{_text(key)} = {_value(value)}\n" for key, value in tree.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return _text(value) if isinstance(value, str) else repr(value)


def _text(said: str) -> str:
    return json.dumps(said, ensure_ascii=False).replace("\x7f", "\\u007f")
