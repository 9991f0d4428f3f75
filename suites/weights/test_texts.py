"""A text is asked about in the tokens that were released, begun as they were in training, and ended."""

import re

import pytest
import torch

from fixtures import conventions, text

pytestmark = pytest.mark.applies(real=(True,))

# What no document of the frozen text has: runs of spaces, digits, other scripts, an emoji of several code points.
OTHERS = ["  two spaces,\ta tab and 12,345.6", "naïve café — Дом, 東京, مرحبا", "👩‍👧 and\n\n\nnothing"]


def test_a_text_becomes_the_released_tokens(case, tokenizer, judge):
    """WEIGHTS-3: a text MUST become its release's tokens, begun once, as it says, and a turn's end MUST end answers."""
    released, documents = case.files(), [*text.documents(), *OTHERS]

    parted = [conventions.parted(released, d, tokenizer(d, add_special_tokens=False).input_ids) for d in documents]

    judge.evidence["documents"] = len(documents)
    judge.exactly("a text that became other tokens", next(filter(None, parted), "none"), "none")


@pytest.mark.applies(gguf=(True,))
def test_words_are_merged_as_a_gguf_file_says(case, tokenizer, judge):
    """WEIGHTS-3: a text MUST become its release's tokens, begun once, as it says, and a turn's end MUST end answers."""
    words = sorted({word for document in text.documents() for word in re.findall("[a-z]+", document)})
    first = tokenizer("a", add_special_tokens=False).input_ids

    found = {word: tokenizer(f"a {word}", add_special_tokens=False).input_ids for word in words}

    ways = conventions.words(case.files(), words)
    other = [word for word, ids in found.items() if ids not in [first + way for way in ways[word]]]
    judge.evidence["words"] = len(words)
    judge.exactly("words of the frozen text that became other tokens", len(other), 0, detail=" ".join(other[:8]))


@pytest.mark.applies(gguf=(True,))
def test_a_text_is_begun_as_a_gguf_file_says(case, tokenizer, judge):
    """WEIGHTS-3: a text MUST become its release's tokens, begun once, as it says, and a turn's end MUST end answers."""
    _begun(case, tokenizer, judge)


@pytest.mark.applies(gguf=(False,))
def test_a_text_is_begun_as_a_folder_says(case, tokenizer, judge):
    """WEIGHTS-3: a text MUST become its release's tokens, begun once, as it says, and a turn's end MUST end answers."""
    _begun(case, tokenizer, judge)


def _begun(case, tokenizer, judge):
    ways = conventions.beginnings(case.files())
    found = conventions.before(lambda special: tokenizer("text", add_special_tokens=special).input_ids)
    wanted = found if found in ways else ways[0]
    judge.exactly("tokens before a text", str(found), str(wanted), detail=f"the release allows {ways}")


@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
def test_a_chat_is_begun_once_and_its_turns_end(case, dtype, device, model, tokenizer, judge):
    """WEIGHTS-3: a text MUST become its release's tokens, begun once, as it says, and a turn's end MUST end answers."""
    released, ends = case.files(), conventions.several(model.generation_config.eos_token_id)
    found, written = conventions.chat(tokenizer)

    # A base model's template may end turns with what ends no answer by its own release: it is not for chats.
    endless = conventions.turn_ends(tokenizer).intersection(conventions.ends(released)).difference(ends)
    judge.evidence["chat template"] = bool(tokenizer.chat_template)
    judge.exactly("ends of a turn that end no answer", str(endless or "none"), "none")
    judge.exactly("tokens of a chat", str(found), str(written), detail="wanted are those of what its template writes")
