"""Faults in what becomes of texts that come in a batch, of those that are cut, and in how answers are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from suites.meta.faults import fault, swapped

READ = ("weights/test_texts.py", "answers_are_read and served")
BATCH = ("weights/test_texts.py", "texts_of_a_batch and served")
CUT = ("weights/test_texts.py", "is_cut_where and served")


def _called(change: Callable[..., Any]) -> AbstractContextManager[None]:
    """Patch what a tokenizer makes of texts. change(original, tokenizer, one text or several, **keywords)."""
    from transformers import PreTrainedTokenizerBase

    original = PreTrainedTokenizerBase.__call__

    def call(self: Any, text: Any, **more: Any) -> Any:
        return change(original, self, text, **more)

    return swapped(PreTrainedTokenizerBase, "__call__", call)


def _read(change: Callable[..., Any], method: str = "decode") -> AbstractContextManager[None]:
    """Patch how tokens are read. change(original, tokenizer, *args, **keywords), as of the original."""
    from transformers import PreTrainedTokenizerBase

    original = getattr(PreTrainedTokenizerBase, method)

    def decode(self: Any, *args: Any, **more: Any) -> Any:
        return change(original, self, *args, **more)

    return swapped(PreTrainedTokenizerBase, method, decode)


@fault("WEIGHTS-3", *READ, source="https://github.com/ai-dynamo/dynamo/issues/4062", unseen="answers without an end")
def special_tokens_stay_in_answers() -> Iterator[None]:
    """What ends a turn is read with the answer that it ends."""
    with _read(lambda original, *args, **more: original(*args, **more | {"skip_special_tokens": False})):
        yield


@fault(
    "WEIGHTS-3",
    *READ,
    source="https://github.com/openvinotoolkit/model_server/issues/4168",
    unseen="answers without special tokens",
)
def special_tokens_are_always_taken_out() -> Iterator[None]:
    """A client that asks for them, to find a tool's call by them, is given none."""
    with _read(lambda original, *args, **more: original(*args, **more | {"skip_special_tokens": True})):
        yield


@fault(
    "WEIGHTS-3",
    *READ,
    source="https://github.com/ml-explore/mlx-lm/pull/1754, before it",
    unseen="answers that begin with a letter",
)
def the_first_space_of_an_answer_is_lost() -> Iterator[None]:
    """It is taken for the space that SentencePiece puts before a text."""

    def decode(original: Any, *args: Any, **more: Any) -> Any:
        found = original(*args, **more)
        return found.removeprefix(" ") if isinstance(found, str) else [text.removeprefix(" ") for text in found]

    with _read(decode):
        yield


@fault(
    "WEIGHTS-3",
    *READ,
    source="https://github.com/huggingface/transformers/issues/32575",
    unseen="answers that are read one by one",
)
def answers_of_a_batch_are_cleaned_up() -> Iterator[None]:
    """A space before punctuation is taken out of answers that are read together."""

    def decode(original: Any, *args: Any, **more: Any) -> Any:
        return [text.replace(" ,", ",").replace(" .", ".") for text in original(*args, **more)]

    with _read(decode, "batch_decode"):
        yield


@fault(
    "WEIGHTS-3",
    *BATCH,
    source="https://github.com/microsoft/onnxruntime-genai/pull/1694, before it",
    unseen="texts without the token that pads",
)
def a_mask_is_told_by_the_token_that_pads() -> Iterator[None]:
    """Where the end of a turn also pads, a model does not see where the turns of a chat end."""

    def call(original: Any, self: Any, text: Any, **more: Any) -> Any:
        found = original(self, text, **more)
        if not isinstance(text, str):
            found["attention_mask"] = (found["input_ids"] != self.pad_token_id).long()
        return found

    with _called(call):
        yield


@fault("WEIGHTS-3", *BATCH, source="our own: servers of fixed shapes", unseen="the tokens that the mask shows")
def a_batch_is_as_long_as_a_server_allows() -> Iterator[None]:
    """padding=True pads to 256 tokens, and each row costs as much."""

    def call(original: Any, self: Any, text: Any, **more: Any) -> Any:
        fixed = {"padding": "max_length", "max_length": 256} if more.get("padding") is True else {}
        return original(self, text, **more | fixed)

    with _called(call):
        yield


@fault("WEIGHTS-3", *BATCH, source="our own: an endpoint for batches", unseen="texts that begin and end with a letter")
def texts_of_a_batch_are_trimmed() -> Iterator[None]:
    """The blanks before a text and behind it are there when it is asked alone."""

    def call(original: Any, self: Any, text: Any, **more: Any) -> Any:
        return original(self, text if isinstance(text, str) else [one.strip() for one in text], **more)

    with _called(call):
        yield


@fault("WEIGHTS-3", *CUT, source="https://github.com/huggingface/tokenizers/issues/779", unseen="texts that fit")
def the_end_of_a_text_is_cut_whatever_side_is_said() -> Iterator[None]:
    """truncation_side is not passed on: the question goes, and what it is about stays."""

    def call(original: Any, self: Any, text: Any, **more: Any) -> Any:
        side, self.truncation_side = self.truncation_side, "right"
        try:
            return original(self, text, **more)
        finally:
            self.truncation_side = side

    with _called(call):
        yield


@fault(
    "WEIGHTS-3",
    *CUT,
    source="https://github.com/vllm-project/llm-compressor/pull/2917, before it",
    unseen="requests before the first that is cut",
)
def a_request_is_cut_as_the_one_before_it() -> Iterator[None]:
    """What one request said of its length stays with the tokenizer, and holds for those that say nothing."""
    kept: dict[str, Any] = {}

    def call(original: Any, self: Any, text: Any, **more: Any) -> Any:
        if more.get("truncation"):
            kept.update(truncation=True, max_length=more["max_length"])
        return original(self, text, **kept | more)

    with _called(call):
        yield
