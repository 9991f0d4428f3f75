"""Faults in what is made of a release's words about texts: their tokens, their beginning, and what ends an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from suites.meta.faults import after_loading, fault, swapped

SAYS = ("weights/test_generation.py", "as_its_release_says and llama-gqa")
ENDS = ("weights/test_generation.py", "where_the_release_says and llama-gqa")
SERVED = ("weights/test_generation.py", "served")
TOKENS = ("weights/test_texts.py", "becomes and served")
BEGUN = ("weights/test_texts.py", "is_begun_as_a_gguf and served")
CHAT = ("weights/test_texts.py", "chat and served")


def _tokenized(change: Callable[[Any, list[int], bool], list[int]]) -> AbstractContextManager[None]:
    """Patch what a tokenizer makes of one text. change(tokenizer, ids, with special tokens) -> ids."""
    from transformers import PreTrainedTokenizerBase

    original = PreTrainedTokenizerBase.__call__

    def call(self: Any, text: Any, *args: Any, **more: Any) -> Any:
        found = original(self, text, *args, **more)
        if isinstance(text, str) and isinstance(found["input_ids"], list):
            found["input_ids"] = change(self, found["input_ids"], more.get("add_special_tokens", True))
        return found

    return swapped(PreTrainedTokenizerBase, "__call__", call)


@fault(
    "WEIGHTS-2", *SAYS, source="https://github.com/vllm-project/vllm/issues/45591", unseen="releases that say the same"
)
def generation_config_is_not_read() -> Iterator[None]:
    """Where answers end, and how they are sampled, comes from config.json alone."""
    from transformers import AutoConfig, GenerationConfig

    def from_pretrained(cls: Any, where: Any, *args: Any, **more: Any) -> Any:
        return cls.from_model_config(AutoConfig.from_pretrained(where))

    with swapped(GenerationConfig, "from_pretrained", classmethod(from_pretrained)):
        yield


@fault("WEIGHTS-2", *ENDS, source="https://github.com/Blaizzy/mlx-vlm/pull/309", unseen="releases with one end")
def of_several_ends_the_first_is_read() -> Iterator[None]:
    """The end of text ends an answer, and the end of a turn does not."""

    def change(model: Any) -> None:
        ends = model.generation_config.eos_token_id
        model.generation_config.eos_token_id = ends[0] if isinstance(ends, list) else ends

    with after_loading(change):
        yield


@fault("WEIGHTS-2", *ENDS, source="our own: a server's limit", unseen="answers that end before it")
def an_answer_is_as_long_as_the_server_says() -> Iterator[None]:
    """max_new_tokens of the release is read, and 9 is used where a request names none."""
    from transformers import GenerationMixin

    original = GenerationMixin.generate

    def generate(self: Any, *args: Any, **more: Any) -> Any:
        return original(self, *args, **more if "generation_config" in more else {"max_new_tokens": 9} | more)

    with swapped(GenerationMixin, "generate", generate):
        yield


@fault("WEIGHTS-2", *SERVED, source="https://github.com/ggml-org/llama.cpp/issues/5040", unseen="releases of folders")
def the_end_that_a_gguf_file_names_is_lost() -> Iterator[None]:
    """No token ends an answer of the served model."""

    def change(model: Any) -> None:
        model.generation_config.eos_token_id = None

    with after_loading(change):
        yield


@fault("WEIGHTS-3", *BEGUN, source="https://github.com/ggml-org/llama.cpp/issues/3966", unseen="chats, which say it")
def a_text_is_begun_although_its_release_says_no() -> Iterator[None]:
    """A tokenizer puts its first token before every text."""
    with _tokenized(lambda tokenizer, ids, special: [tokenizer.bos_token_id, *ids] if special else ids):
        yield


@fault(
    "WEIGHTS-3", *CHAT, source="https://github.com/sgl-project/sglang/pull/888", unseen="templates without a beginning"
)
def a_chat_is_begun_twice() -> Iterator[None]:
    """What a chat template wrote is tokenized with a beginning of its own."""
    from transformers import PreTrainedTokenizerBase

    original = PreTrainedTokenizerBase.apply_chat_template

    def apply(self: Any, *args: Any, **more: Any) -> Any:
        found = original(self, *args, **more)
        return [self.bos_token_id, *found] if isinstance(found, list) else found

    with swapped(PreTrainedTokenizerBase, "apply_chat_template", apply):
        yield


@fault("WEIGHTS-3", *CHAT, source="https://github.com/vllm-project/vllm/issues/4180", unseen="answers that are cut off")
def a_turn_ends_with_what_ends_no_answer() -> Iterator[None]:
    """The end of text ends an answer; the end of a turn, which is what a chat model says, is not known for one."""

    def change(model: Any) -> None:
        model.generation_config.eos_token_id = 0

    with after_loading(change):
        yield


@fault("WEIGHTS-3", *TOKENS, source="our own: two rows of a vocabulary", unseen="texts without either token")
def two_tokens_have_changed_places() -> Iterator[None]:
    """Each stands for the other's letters; weights are where they were."""
    swap = {281: 282, 282: 281}
    with _tokenized(lambda tokenizer, ids, special: [swap.get(token, token) for token in ids]):
        yield


@fault("WEIGHTS-3", *TOKENS, source="our own: a default of SentencePiece's", unseen="texts that begin with a space")
def a_space_is_put_before_every_text() -> Iterator[None]:
    """The first word becomes the token that stands inside a text."""
    from transformers import PreTrainedTokenizerBase

    original = PreTrainedTokenizerBase.__call__

    def call(self: Any, text: Any, *args: Any, **more: Any) -> Any:
        return original(self, f" {text}" if isinstance(text, str) else text, *args, **more)

    with swapped(PreTrainedTokenizerBase, "__call__", call):
        yield
