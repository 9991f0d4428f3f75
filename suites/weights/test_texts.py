"""A text is asked about in the tokens that were released, begun as they were in training, and ended."""

import re
from functools import partial

import pytest
import torch

from fixtures import conventions, text
from fixtures.tokenizing import padding, streamed, streamed_to_a_loop

pytestmark = pytest.mark.applies(real=(True,))

# What no document of the frozen text has: runs of spaces, digits, other scripts, an emoji of several code points, and
# what normalization would replace: a ligature, an ellipsis, a half, a wide letter, a space that does not break, an
# accent of its own; spaces before punctuation.
OTHERS = [
    "  two spaces,\ta tab and 12,345.6",
    "naïve café — Дом, 東京, مرحبا",
    "👩‍👧 and\n\n\nnothing",
    "\ufb01ne\u2026 \u00bd \uff21 no\u00a0break, e\u0301",
    "x != y , he said . do n't ?",
]

# Where families of tokenizers part: signs before a line's end or a name, several digits, a number on a new line.
CODE = ["def f(self):\n\treturn self._name[12345], f(x);\n\n2. It's so:\r\n    (x)\n"]
# A step of speculation hands on several tokens.
STREAMS = {
    "a token at a time": streamed,
    "three at a time": partial(streamed, at_once=3),
    "to an event loop": streamed_to_a_loop,
}
CUT = {"words": lambda said: re.sub(r"\d", "", said), "numbers": lambda said: said}


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


@pytest.mark.parametrize("what", CUT)
@pytest.mark.applies(gguf=(True,))
def test_a_text_is_cut_as_a_gguf_file_says(case, what, tokenizer, judge):
    """WEIGHTS-3: a text MUST become its release's tokens, begun once, as it says, and a turn's end MUST end answers."""
    ways = conventions.cut(case.files(), [CUT[what](document) for document in [*text.documents(), *CODE]])

    found = {said: tokenizer(said, add_special_tokens=False).input_ids for said in ways}

    parted = (conventions.parting(ids, ways[said][0]) for said, ids in found.items() if ids not in ways[said])
    judge.evidence["documents"] = len(ways)
    judge.exactly("a text that was cut otherwise", next(parted, "none"), "none")


def test_a_special_token_in_a_text_is_one(case, tokenizer, judge):
    """WEIGHTS-3: a text MUST become its release's tokens, begun once, as it says, and a turn's end MUST end answers."""
    special = conventions.special(case.files())

    found = {token: tokenizer(f"so{token}it", add_special_tokens=False).input_ids for token in special}

    other = [token for token, ids in found.items() if ids.count(special[token]) != 1]
    judge.evidence["special tokens"] = len(special)
    judge.exactly("special tokens that became letters", len(other), 0, detail=" ".join(other[:8]))


def test_tokens_are_read_as_the_text_that_they_are(case, tokenizer, judge):
    """WEIGHTS-3: a text MUST become its release's tokens, begun once, as it says, and a turn's end MUST end answers."""
    released = case.files()
    # A release may ask for what no text gets back from.
    plain = {"clean_up_tokenization_spaces": False} if conventions.tidied(released) else {}
    tokens = [tokenizer(said, add_special_tokens=False).input_ids for said in [*text.documents(), *OTHERS]]

    found = [tokenizer.decode(ids, skip_special_tokens=True, **plain) for ids in tokens]

    wanted = (conventions.read(released, ids) for ids in tokens)
    parted = map(conventions.parting, found, wanted)
    judge.evidence["documents"] = len(tokens)
    judge.exactly("a text that was read otherwise", next(filter(None, parted), "none"), "none")


def test_answers_are_read_with_what_ends_them_or_without(case, tokenizer, judge):
    """WEIGHTS-3: a text MUST become its release's tokens, begun once, as it says, and a turn's end MUST end answers."""
    released = case.files()
    ends = sorted(conventions.ends(released) & conventions.unspoken(released))
    answers = [tokenizer(said, add_special_tokens=False).input_ids + ends for said in [" Paris, he said.", *OTHERS]]

    for special in (False, True):
        how = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
        wanted = [conventions.read(released, ids, special) for ids in answers]
        for what, found in {
            "alone": [tokenizer.decode(ids, **how) for ids in answers],
            "in a batch": tokenizer.batch_decode(answers, **how),
        }.items():
            parted = next(filter(None, map(conventions.parting, found, wanted)), "none")
            judge.exactly(f"an answer read {what}, {'with' if special else 'without'} its end", parted, "none")


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_of_a_batch_are_what_they_are_alone(case, side, tokenizer, judge):
    """WEIGHTS-3: a text MUST become its release's tokens, begun once, as it says, and a turn's end MUST end answers."""
    own = padding(tokenizer)
    # What pads may also end turns, and then it is in the texts.
    texts = ["  return x ", *OTHERS, f"so{own.pad_token}it{own.pad_token}"]
    alone = [own(said).input_ids for said in texts]
    longest = max(map(len, alone))

    found = own(texts, padding=True, padding_side=side, return_tensors="pt")

    def wanted(rows, fill):
        filling = [[fill] * (longest - len(row)) for row in rows]
        return [f + row if side == "left" else row + f for row, f in zip(rows, filling, strict=True)]

    masks = wanted([[1] * len(row) for row in alone], 0)
    judge.exactly("tokens", str(found.input_ids.tolist()), str(wanted(alone, own.pad_token_id)))
    judge.exactly("what the mask shows", str(found.attention_mask.tolist()), str(masks))


def test_a_text_is_cut_where_a_request_says_so(case, tokenizer, judge):
    """WEIGHTS-3: a text MUST become its release's tokens, begun once, as it says, and a turn's end MUST end answers."""
    own, said = padding(tokenizer), "An old text, and an older one, and the question?"
    whole = tokenizer(said, add_special_tokens=False).input_ids

    for side, wanted in {"left": whole[-4:], "right": whole[:4]}.items():
        own.truncation_side = side
        found = own(said, truncation=True, max_length=4, add_special_tokens=False).input_ids
        judge.exactly(f"four tokens, cut on the {side}", str(found), str(wanted))
        own(said, padding="max_length", max_length=len(whole) + 4)
        found = own(said, add_special_tokens=False).input_ids
        judge.exactly("a request after it, neither cut nor padded", str(found), str(whole))


def test_tokens_are_streamed_as_the_text_that_they_are(case, tokenizer, judge):
    """WEIGHTS-3: a text MUST become its release's tokens, begun once, as it says, and a turn's end MUST end answers."""
    how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    tokens = [tokenizer(said, add_special_tokens=False).input_ids for said in [*OTHERS, *CODE]]

    found = {way: [stream(tokenizer, ids, **how) for ids in tokens] for way, stream in STREAMS.items()}

    wanted = [tokenizer.decode(ids, **how) for ids in tokens]
    judge.evidence["documents"] = len(tokens)
    for way, texts in found.items():
        parted = next(filter(None, map(conventions.parting, texts, wanted)), "none")
        judge.exactly(f"a text that was streamed otherwise, {way}", parted, "none")


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


def test_a_chat_is_written_as_the_release_says(case, tokenizer, judge):
    """WEIGHTS-3: a text MUST become its release's tokens, begun once, as it says, and a turn's end MUST end answers."""
    chats = conventions.chats(case.files(), tokenizer)

    other = [f"{what}: {found}" for what, pair in chats.items() if (found := conventions.parting(*pair))]
    judge.evidence["chats"] = len(chats)
    judge.exactly("a chat that was written otherwise", next(iter(other), "none"), "none")


def test_a_template_is_told_what_is_asked(case, tokenizer, judge):
    """WEIGHTS-3: a text MUST become its release's tokens, begun once, as it says, and a turn's end MUST end answers."""
    chats = conventions.told(tokenizer)

    other = [f"{what}: {found}" for what, pair in chats.items() if (found := conventions.parting(*pair))]
    judge.exactly("what a template was not told", next(iter(other), "none"), "none")
