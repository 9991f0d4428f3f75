"""Faults that keep a model, or a part of it, when nobody else does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from suites.meta.faults import after_loading, fault, patches, swapped

FILE = "memory/test_end.py"


@fault(
    "MEM-13",
    FILE,
    "a_model_ends and plain and llama-gqa",
    source="https://github.com/huggingface/transformers/issues/26571, of its kind",
    unseen="a process that loads once",
)
def every_loaded_model_is_listed() -> Iterator[None]:
    """What was loaded is listed, for a command that shows it."""
    listed: list[Any] = []
    with after_loading(listed.append):
        yield


@fault(
    "MEM-13",
    FILE,
    "a_model_ends and beams and llama-gqa",
    source="our own: functools.cache on a method",
    unseen="a process that loads once; requests without beams",
)
def settings_are_cached_by_their_model() -> Iterator[None]:
    """A cached answer of a method that beams ask for holds the model that it was asked of."""
    answers: dict[Any, Any] = {}

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        answers[model] = len(answers)
        return original(model, *args, **more)

    with patches.generation("_beam_search", change):
        yield


@fault(
    "MEM-13",
    FILE,
    "a_model_ends and plain and bloom-alibi",
    source="our own: a head laid out for its kernel, by its shape",
    unseen="a process that loads once; modules, which all go",
)
def a_view_of_the_head_is_kept_by_its_shape() -> Iterator[None]:
    """A table for a kernel keeps the transposed head, which is a view of it."""
    table: dict[Any, Any] = {}

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        head = model.get_output_embeddings().weight.detach()
        table[head.shape] = head.mT
        return original(model, *args, **more)

    with patches.generation("generate", change):
        yield


@fault(
    "MEM-13",
    FILE,
    "a_model_ends and raising and llama-gqa",
    source="sys.last_exc and its kind, https://docs.python.org/3/library/sys.html#sys.last_exc",
    unseen="a process that loads once; requests that raise nothing",
)
def an_error_is_kept_with_its_frames() -> Iterator[None]:
    """What a request raised is kept for a post mortem, with the frames that hold the model."""
    last: list[BaseException] = []

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        try:
            return original(model, *args, **more)
        except Exception as error:
            last[:] = [error]
            raise

    with patches.generation("generate", change):
        yield


@fault(
    "MEM-13",
    FILE,
    "quantized_model_ends and bnb-nf4",
    source="our own: a workspace that remembers whom it served",
    unseen="a process that loads once; other schemes",
)
def packed_weights_are_kept_by_the_last_call() -> Iterator[None]:
    """The kernel for 4 bits keeps the last weight that it multiplied by."""
    import bitsandbytes as bnb

    kept: list[Any] = []
    original = bnb.nn.Linear4bit.forward

    def forward(self: Any, x: Any) -> Any:
        kept[:] = [self.weight.data]
        return original(self, x)

    with swapped(bnb.nn.Linear4bit, "forward", forward):
        yield
