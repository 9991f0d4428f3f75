"""Faults in how answers are handed on: by streams, and by transformers' pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from suites.meta.faults import fault, swapped
from suites.meta.faults.patches import generation

STREAMED = ("weights/test_texts.py", "streamed and served")
IN_TIME = ("kv_cache/test_generate.py", "after_any_prompt and from-1- and dynamic-llama-gqa")
RELEASED = ("weights/test_generation.py", "pipeline and llama-gqa")
TEXTS = ("kv_cache/test_generate.py", "pipeline and texts and llama-gqa")
CHATS = ("kv_cache/test_generate.py", "pipeline and chats and llama-gqa")


@fault("WEIGHTS-3", *STREAMED, source="our own: a race that the end wins", unseen="streams without an event loop")
def a_stream_is_over_before_its_last_text() -> Iterator[None]:
    """What says that nothing follows stands in the queue before what was held back."""
    from transformers import AsyncTextIteratorStreamer

    def hand_on(self: Any, text: str, stream_end: bool = False) -> None:
        for part in [self.stop_signal, text] if stream_end else [text]:
            self.loop.call_soon_threadsafe(self.text_queue.put_nowait, part)

    with swapped(AsyncTextIteratorStreamer, "on_finalized_text", hand_on):
        yield


@fault(
    "WEIGHTS-3",
    *STREAMED,
    source="https://github.com/vllm-project/vllm/pull/26027, before it",
    unseen="answers of which each step has one token",
)
def of_several_tokens_the_last_is_streamed() -> Iterator[None]:
    """A step of speculation has several, and a client reads one of them."""
    from transformers import TextStreamer

    original = TextStreamer.put

    def put(self: Any, value: Any) -> None:
        original(self, value[-1:] if value.ndim == 1 else value)

    with swapped(TextStreamer, "put", put):
        yield


@fault("KV-14", *IN_TIME, source="our own: a proxy that buffers", unseen="the text, which is the same")
def a_stream_comes_at_the_end() -> Iterator[None]:
    """Tokens are kept until the answer is over: its first takes as long as its last."""

    def generate(original: Any, self: Any, *args: Any, streamer: Any = None, **more: Any) -> Any:
        if streamer is None:
            return original(self, *args, **more)
        held: list[Any] = []
        found = original(self, *args, streamer=SimpleNamespace(put=held.append, end=lambda: None), **more)
        for value in held:
            streamer.put(value)
        streamer.end()
        return found

    with generation("generate", generate):
        yield


@fault(
    "WEIGHTS-2",
    *RELEASED,
    source="https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/pipelines/base.py",
    unseen="releases that say the same",
)
def a_pipeline_knows_better_than_the_release() -> Iterator[None]:
    """256 tokens are drawn at a temperature of 0.7, unless the request says otherwise."""
    from transformers import TextGenerationPipeline

    original, own = TextGenerationPipeline._forward, {"do_sample": True, "temperature": 0.7, "max_new_tokens": 256}

    def forward(self: Any, inputs: Any, **more: Any) -> Any:
        return original(self, inputs, **own | more)

    with swapped(TextGenerationPipeline, "_forward", forward):
        yield


@fault("KV-14", *CHATS, source="https://github.com/kserve/kserve/pull/3775", unseen="texts that are no chats")
def a_pipeline_begins_no_answer() -> Iterator[None]:
    """A model goes on behind its user's turn."""
    from transformers import TextGenerationPipeline

    original = TextGenerationPipeline.preprocess

    def preprocess(self: Any, *args: Any, **more: Any) -> Any:
        write = self.tokenizer.apply_chat_template

        def begun_by_nobody(chat: Any, **said: Any) -> Any:
            return write(chat, **said | {"add_generation_prompt": False})

        with swapped(self.tokenizer, "apply_chat_template", begun_by_nobody):
            return original(self, *args, **more)

    with swapped(TextGenerationPipeline, "preprocess", preprocess):
        yield


@fault("KV-14", *TEXTS, source="our own: one value to pad with", unseen="batches of one, or of one length")
def a_pipeline_shows_its_padding() -> Iterator[None]:
    """The mask of a shorter text is filled with ones, as if it were as long."""
    from transformers.pipelines import base

    original = base._pad

    def pad(items: Any, key: str, value: Any, side: str) -> Any:
        return original(items, key, 1 if key == "attention_mask" else value, side)

    with swapped(base, "_pad", pad):
        yield
