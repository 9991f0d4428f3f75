"""Faults to inject: each one is a defect that was shipped somewhere, or could be, on top of an unmodified stack.

Inside `with fault.inject():` the defect is live; on exit everything is as it was. A fault names the promises that must
reject it and the checks to ask; `unseen` is the condition under which nobody could notice it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

_MISSING = object()


@dataclass(frozen=True)
class Fault:
    """One defect: what it is (its docstring), where it was seen, who must reject it.

    checks: a path below suites/, and words for -k.
    """

    name: str
    statement: str
    promise: str
    checks: tuple[str, str]
    source: str
    unseen: str
    inject: Callable[[], AbstractContextManager[None]]
    claims: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    states: str = ""

    @property
    def area(self) -> str:
        """The folder of suites whose checks must reject it."""
        return self.checks[0].split("/")[0]


FAULTS: dict[str, Fault] = {}


def fault(
    promise: str,
    path: str,
    words: str,
    *,
    source: str,
    unseen: str,
    claims: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
    states: str = "",
) -> Callable[[Any], Any]:
    """Register a generator function as a fault.

    `path` and `words`: the checks to ask, below suites/ and by words for -k. `claims`: capabilities that the deployment
    claims, where the promise is about one. `options`: more for the command line, as ("--tier", "full"). `states`: more
    of the deployment file.
    """

    def register(generator: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
        name = generator.__name__
        if name in FAULTS:
            raise ValueError(f"two faults are called {name}")
        statement = " ".join((generator.__doc__ or "").split())
        inject, checks = contextmanager(generator), (path, words)
        FAULTS[name] = Fault(name, statement, promise, checks, source, unseen, inject, claims, options, states)
        return generator

    return register


@contextmanager
def swapped(owner: Any, name: str, new: Any) -> Iterator[None]:
    """Set an attribute, and restore the raw one: a staticmethod stays a staticmethod, an inherited one is inherited."""
    old = vars(owner).get(name, _MISSING)
    setattr(owner, name, new)
    try:
        yield
    finally:
        if old is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, old)


@contextmanager
def swapped_item(mapping: Any, key: Any, new: Any) -> Iterator[None]:
    """Set an item of a mapping, and put the old one back."""
    old = mapping[key]
    mapping[key] = new
    try:
        yield
    finally:
        mapping[key] = old


@contextmanager
def after_loading(change: Callable[[Any], None]) -> Iterator[None]:
    """Do something to every model that `from_pretrained` returns."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        model = original(cls, *args, **kwargs)
        change(model)
        return model

    with swapped(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)):
        yield


def all_of(*contexts: AbstractContextManager[Any]) -> ExitStack:
    """Several patches at once."""
    stack = ExitStack()
    for context in contexts:
        stack.enter_context(context)
    return stack


from suites.meta.faults import (  # noqa: E402 - each registers its faults here
    allocations,
    answers,
    arithmetic,
    asked,
    batches,
    beams,
    cache_cost,
    cache_reuse,
    cache_rounding,
    cache_rows,
    cache_writes,
    chats,
    claims,
    company,
    contexts,
    devices,
    ends,
    engagement,
    handing_on,
    in_models,
    kv_cache,
    layouts,
    left,
    masks,
    memory,
    modes,
    outliving,
    packed,
    paged,
    positions,
    products,
    quantization,
    quantized_models,
    readings,
    requests,
    rotary,
    rounding,
    sampling,
    scalings,
    scores,
    settings,
    shapes,
    states,
    tables,
    texts,
    threads,
    throughput,
    tiles,
    together,
    told,
    ways,
    weights,
)

__all__ = [
    "FAULTS",
    "Fault",
    "allocations",
    "answers",
    "arithmetic",
    "asked",
    "batches",
    "beams",
    "cache_cost",
    "cache_reuse",
    "cache_rounding",
    "cache_rows",
    "cache_writes",
    "chats",
    "claims",
    "company",
    "contexts",
    "devices",
    "ends",
    "engagement",
    "fault",
    "handing_on",
    "in_models",
    "kv_cache",
    "layouts",
    "left",
    "masks",
    "memory",
    "modes",
    "outliving",
    "packed",
    "paged",
    "positions",
    "products",
    "quantization",
    "quantized_models",
    "readings",
    "requests",
    "rotary",
    "rounding",
    "sampling",
    "scalings",
    "scores",
    "settings",
    "shapes",
    "states",
    "tables",
    "texts",
    "threads",
    "throughput",
    "tiles",
    "together",
    "told",
    "ways",
    "weights",
]
