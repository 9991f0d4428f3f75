"""Faults in how chats are written, how texts are cut before they are merged, and how answers are read."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from suites.meta.faults import fault, swapped

Request = tuple[list[Any], dict[str, Any]]

WRITTEN = ("weights/test_texts.py", "chat_is_written and served")
TOKENS = ("weights/test_texts.py", "becomes and served")
SPECIAL = ("weights/test_texts.py", "special and served")
TOLD = ("weights/test_texts.py", "template_is_told and served")
BEGUN = ("weights/test_texts.py", "chat_is_begun and served")
READ = ("weights/test_texts.py", "are_read and served")
CUT = ("weights/test_texts.py", "is_cut and words and served")

CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# meta-llama/llama3, llama/tokenizer.py
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _asked(change: Callable[[list[Any], dict[str, Any]], Request]) -> AbstractContextManager[None]:
    """Patch what a chat template is asked. change(a chat, what else is said) -> the same of another request."""
    from transformers import PreTrainedTokenizerBase

    original = PreTrainedTokenizerBase.apply_chat_template

    def apply(self: Any, conversation: Any, **more: Any) -> Any:
        chat, said = change(conversation, more)
        return original(self, chat, **said)

    return swapped(PreTrainedTokenizerBase, "apply_chat_template", apply)


def _with_backend(change: Callable[[Any], None]) -> AbstractContextManager[None]:
    """Patch how a text is made tokens. change(a copy of the tokenizers library's own tokenizer)."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    original, changed = PreTrainedTokenizerBase.__call__, {}

    def call(self: Any, text: Any, *args: Any, **more: Any) -> Any:
        found = original(self, text, *args, **more)
        if isinstance(text, str) and isinstance(found["input_ids"], list):
            if id(self) not in changed:
                changed[id(self)] = Tokenizer.from_str(self.backend_tokenizer.to_str())
                change(changed[id(self)])
            special = more.get("add_special_tokens", True)
            found["input_ids"] = changed[id(self)].encode(text, add_special_tokens=special).ids
        return found

    return swapped(PreTrainedTokenizerBase, "__call__", call)


@fault(
    "WEIGHTS-3",
    *WRITTEN,
    source="https://github.com/kserve/kserve/pull/3775",
    unseen="templates that begin no answer",
)
def an_answer_is_not_begun() -> Iterator[None]:
    """add_generation_prompt is not passed on: a model goes on behind its user's turn."""
    with _asked(lambda chat, said: (chat, said | {"add_generation_prompt": False})):
        yield


@fault(
    "WEIGHTS-3",
    *WRITTEN,
    source="https://github.com/ggml-org/llama.cpp/issues/13948",
    unseen="releases whose template it is",
)
def a_servers_own_template_is_used() -> Iterator[None]:
    """ChatML, without the system message that the release puts before a chat."""
    with _asked(lambda chat, said: (chat, said | {"chat_template": CHATML})):
        yield


@fault(
    "WEIGHTS-3",
    *WRITTEN,
    source="https://github.com/scouzi1966/maclocal-api/issues/302",
    unseen="chats that begin with a system message",
)
def a_server_puts_its_own_system_message_first() -> Iterator[None]:
    """A chat without a system message begins with one that nobody wrote."""
    own = [{"role": "system", "content": "You are a helpful assistant."}]
    with _asked(lambda chat, said: (chat if chat[0]["role"] == "system" else own + chat, said)):
        yield


@fault(
    "WEIGHTS-3",
    *SPECIAL,
    source="https://github.com/ggml-org/llama.cpp/pull/3751",
    unseen="texts without special tokens",
)
def special_tokens_in_a_text_are_letters() -> Iterator[None]:
    """The beginning of a turn is tokenized as the twelve letters that it is written with."""

    def change(made: Any) -> None:
        made.encode_special_tokens = True

    with _with_backend(change):
        yield


@fault(
    "WEIGHTS-3",
    *TOKENS,
    source="our own: NFKC, as SentencePiece does it",
    unseen="plain letters",
)
def texts_are_normalized() -> Iterator[None]:
    """A ligature becomes its letters, and an ellipsis three dots, before a text is cut."""
    from tokenizers import normalizers

    def change(made: Any) -> None:
        made.normalizer = normalizers.NFKC()

    with _with_backend(change):
        yield


@fault(
    "WEIGHTS-3", *CUT, source="https://github.com/ggml-org/llama.cpp/pull/6920", unseen="prose that has no line ends"
)
def texts_are_cut_as_llama_3_cuts_them() -> Iterator[None]:
    """A sign before a line's end, or before a name, is joined with it."""
    from tokenizers import Regex, pre_tokenizers

    def change(made: Any) -> None:
        spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), spelled])

    with _with_backend(change):
        yield


@fault(
    "WEIGHTS-3",
    *READ,
    source="https://github.com/huggingface/transformers/issues/32575",
    unseen="answers without spaces before punctuation",
)
def answers_are_cleaned_up() -> Iterator[None]:
    """A space before punctuation is taken out of what a model says."""
    from transformers import PreTrainedTokenizerBase

    original = PreTrainedTokenizerBase.decode

    def decode(self: Any, *args: Any, **more: Any) -> Any:
        found = original(self, *args, **more)
        for sign in (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"):
            found = found.replace(f" {sign}", sign)
        return found

    with swapped(PreTrainedTokenizerBase, "decode", decode):
        yield


def _rewritten(change: Callable[[Any], Any]) -> AbstractContextManager[None]:
    """Patch what is said in a chat. change(a message's content) -> what its template is given."""
    return _asked(lambda chat, said: ([m | {"content": change(m["content"])} for m in chat], said))


@fault("WEIGHTS-3", *WRITTEN, source="our own: a template engine that escapes", unseen="texts without < > & and quotes")
def what_is_said_is_escaped_as_for_a_page() -> Iterator[None]:
    """A sign that means something in HTML becomes its name: a model reads `a &lt; b`."""
    with _rewritten(lambda content: html.escape(content) if isinstance(content, str) else content):
        yield


@fault(
    "WEIGHTS-3",
    *WRITTEN,
    source="https://github.com/SillyTavern/SillyTavern/issues/4611",
    unseen="texts that begin and end with a letter",
)
def what_is_said_is_trimmed() -> Iterator[None]:
    """Blanks and line ends before and behind what is said are taken away: a program's first line loses its indent."""
    with _rewritten(lambda content: content.strip() if isinstance(content, str) else content):
        yield


@fault("WEIGHTS-3", *WRITTEN, source="our own: a context that a front-end manages", unseen="chats of five messages")
def of_a_chat_the_last_messages_are_kept() -> Iterator[None]:
    """What was said more than five messages ago is gone, however short it was."""
    with _asked(lambda chat, said: (chat[-5:], said)):
        yield


@fault(
    "WEIGHTS-3",
    *WRITTEN,
    source="https://github.com/huggingface/transformers/issues/46326",
    unseen="chats that end with a question",
)
def an_answer_that_is_begun_is_ended() -> Iterator[None]:
    """continue_final_message is not passed on: what a client began is a turn of its own."""
    with _asked(lambda chat, said: (chat, said | {"continue_final_message": False})):
        yield


@fault(
    "WEIGHTS-3",
    *TOLD,
    source="https://github.com/Blaizzy/mlx-vlm/pull/1137, before it",
    unseen="content of one part, or of none",
)
def of_several_parts_the_last_is_read() -> Iterator[None]:
    """Content that comes in parts is its last one."""
    with _rewritten(lambda content: content if isinstance(content, str) else content[-1:]):
        yield


@fault(
    "WEIGHTS-3",
    *TOLD,
    source="https://github.com/raullenchai/Rapid-MLX/pull/389, before it",
    unseen="requests that ask for neither",
)
def tools_and_words_of_a_template_are_dropped() -> Iterator[None]:
    """A template learns of no tool, no document, and not that it is to begin no thinking."""
    known = {"tokenize", "return_dict", "chat_template", "add_generation_prompt", "continue_final_message"}
    with _asked(lambda chat, said: (chat, {name: value for name, value in said.items() if name in known})):
        yield


@fault("WEIGHTS-3", *BEGUN, source="our own: one of a tokenizer's two ways", unseen="chats that are written as text")
def an_answer_is_begun_in_text_alone() -> Iterator[None]:
    """add_generation_prompt is lost where tokens are asked for."""
    with _asked(lambda chat, said: (chat, said | {"add_generation_prompt": False} if said["tokenize"] else said)):
        yield
