"""Faults in what is made of a release's words about texts: their tokens, their beginning, and what ends an answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from suites.meta.faults import after_loading, all_of, fault, swapped

SAYS = ("weights/test_generation.py", "as_its_release_says and llama-gqa")
ENDS = ("weights/test_generation.py", "where_the_release_says and llama-gqa")
DRAWN = ("weights/test_generation.py", "is_drawn and llama-gqa")
SERVED = ("weights/test_generation.py", "served")
TOKENS = ("weights/test_texts.py", "becomes and served")
WORDS = ("weights/test_texts.py", "words and served")
BEGUN = ("weights/test_texts.py", "is_begun_as_a_gguf and served")
STREAMED = ("weights/test_texts.py", "streamed and served")
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


def _unless_asked(**said: Any) -> AbstractContextManager[None]:
    """Patch what `generate` goes by where a request says nothing of it."""
    from transformers import GenerationMixin

    original = GenerationMixin.generate

    def generate(self: Any, *args: Any, **more: Any) -> Any:
        return original(self, *args, **more if "generation_config" in more else said | more)

    return swapped(GenerationMixin, "generate", generate)


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


@fault(
    "WEIGHTS-2",
    *ENDS,
    source="https://github.com/vllm-project/vllm/pull/5849, before it",
    unseen="releases with one end, or with no least length",
)
def least_length_holds_back_the_first_of_several_ends() -> Iterator[None]:
    """min_new_tokens keeps the end of text from an answer, and the end of a turn comes all the same."""
    from transformers.generation import logits_process

    def first(kind: Any) -> AbstractContextManager[None]:
        original = kind.__init__

        def init(itself: Any, *args: Any, **more: Any) -> None:
            original(itself, *args, **more)
            itself.eos_token_id = itself.eos_token_id[:1]

        return swapped(kind, "__init__", init)

    kinds = logits_process.MinLengthLogitsProcessor, logits_process.MinNewTokensLengthLogitsProcessor
    with all_of(*map(first, kinds)):
        yield


@fault("WEIGHTS-2", *ENDS, source="our own: a server's limit", unseen="answers that end before it")
def an_answer_is_as_long_as_the_server_says() -> Iterator[None]:
    """max_new_tokens of the release is read, and 9 is used where a request names none."""
    with _unless_asked(max_new_tokens=9):
        yield


@fault(
    "WEIGHTS-2", *DRAWN, source="https://github.com/Blaizzy/mlx-vlm/issues/1331", unseen="releases that draw nothing"
)
def answers_are_what_is_ranked_first_whatever_was_released() -> Iterator[None]:
    """do_sample is read, and a request that does not ask for it is answered greedily."""
    with _unless_asked(do_sample=False):
        yield


def _without(step: str) -> AbstractContextManager[None]:
    """One of the steps between logits and what is drawn of them does nothing."""
    from transformers.generation import logits_process

    return swapped(getattr(logits_process, step), "__call__", lambda self, ids, scores: scores)


@fault("WEIGHTS-2", *DRAWN, source="https://github.com/vllm-project/vllm/issues/17075", unseen="a top_k of all tokens")
def top_k_is_not_passed_on() -> Iterator[None]:
    """What is drawn is drawn of all tokens."""
    with _without("TopKLogitsWarper"):
        yield


@fault("WEIGHTS-2", *DRAWN, source="https://github.com/h2oai/h2ogpt/issues/1372", unseen="a top_p of 1")
def top_p_is_not_passed_on() -> Iterator[None]:
    """The unlikely tokens take part."""
    with _without("TopPLogitsWarper"):
        yield


@fault("WEIGHTS-2", *DRAWN, source="https://github.com/h2oai/h2ogpt/issues/1372", unseen="a temperature of 1")
def the_temperature_is_not_passed_on() -> Iterator[None]:
    """Tokens are drawn at a temperature of 1."""
    with _without("TemperatureLogitsWarper"):
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


def _parted(change: Callable[[str, Collection[str]], list[str]]) -> AbstractContextManager[None]:
    """Patch what is a token. change(one as it is spelled, every token) -> others that spell the same."""
    known = cache(lambda tokenizer: tokenizer.get_vocab())

    def parts(tokenizer: Any, ids: list[int], special: bool) -> list[int]:
        numbers = known(tokenizer)
        spelled = tokenizer.convert_ids_to_tokens(ids)
        return [numbers[part] for token in spelled for part in change(token, numbers)]

    return _tokenized(parts)


@fault("WEIGHTS-3", *WORDS, source="https://github.com/ztxz16/fastllm/pull/715", unseen="what the tokens spell")
def merges_go_from_left_to_right() -> Iterator[None]:
    """Letters are joined as long as there is a token of them, whichever pair was learned first."""

    def change(token: str, known: Collection[str]) -> list[str]:
        parts = [""]
        for letter in token:
            parts[-1:] = [parts[-1] + letter] if parts[-1] + letter in known else [parts[-1], letter]
        return parts

    with _parted(change):
        yield


@fault("WEIGHTS-3", *WORDS, source="https://github.com/quantumaikr/quant.cpp/pull/21", unseen="what the tokens spell")
def merges_are_not_read() -> Iterator[None]:
    """Each letter is a token of its own."""
    with _parted(lambda token, known: list(token)):
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


@fault("WEIGHTS-3", *STREAMED, source="https://github.com/exo-explore/exo/pull/1691, before it", unseen="ASCII")
def answers_are_streamed_token_by_token() -> Iterator[None]:
    """Each token is read by itself: an emoji of several arrives as so many replacement characters."""
    from transformers import TextStreamer

    def put(self: Any, value: Any) -> None:
        if value.ndim == 1:
            self.on_finalized_text(self.tokenizer.decode(value, **self.decode_kwargs))

    with swapped(TextStreamer, "put", put):
        yield


@fault("WEIGHTS-3", *STREAMED, source="our own: a buffer that is dropped", unseen="answers that end with a space")
def what_is_held_back_is_never_streamed() -> Iterator[None]:
    """What waits for the rest of its word when an answer ends is lost."""
    from transformers import TextStreamer

    with swapped(TextStreamer, "end", lambda self: self.on_finalized_text("", stream_end=True)):
        yield
