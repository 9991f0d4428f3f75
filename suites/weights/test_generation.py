"""`generate` goes by what was released, and not by defaults of the library's."""

import json
import shutil
from contextlib import suppress

import pytest
import torch

from fixtures.conventions import generation, several
from fixtures.generation import Ending, generated, piped, until
from fixtures.models import VOCABULARY, from_folder
from fixtures.oracles.sampling import Sampling, misjudged
from fixtures.tokenizing import numbered

FLOAT32 = pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
SMALL = pytest.mark.applies(real=(False,), saved=(True,), tier=("standard",))
PROMPT, COUNT = 9, 12

# No value is a default of transformers', nor what the small models' own configs say.
SAID = {
    "bos_token_id": 5,
    "eos_token_id": [11, 7],
    "pad_token_id": 3,
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 17,
    "top_p": 0.9,
    "repetition_penalty": 1.05,
    "max_new_tokens": 40,
}

# At this temperature any token may come; each of the others leaves none but the first.
HOT = {"do_sample": True, "temperature": 100.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": COUNT}
FIRST = {
    "top_k": {"top_k": 1},
    "top_p": {"top_p": 1e-6},
    "min_p": {"min_p": 1.0},
    "temperature": {"temperature": 1e-9},
}


@FLOAT32
@pytest.mark.applies(real=(True,))
def test_what_is_served_generates_as_it_was_released(case, dtype, device, model, judge):
    """WEIGHTS-2: `generate` MUST go by the release: where answers end, how long they are, how they are sampled."""
    _compared(model, generation(case.files()), judge)


@FLOAT32
@SMALL
def test_a_model_generates_as_its_release_says(case, dtype, device, tmp_path, judge):
    """WEIGHTS-2: `generate` MUST go by the release: where answers end, how long they are, how they are sampled."""
    folder = _saying(case, tmp_path, SAID)

    _compared(from_folder(folder, dtype, device), generation(folder), judge)


@torch.no_grad()
@FLOAT32
@SMALL
def test_an_answer_ends_where_the_release_says(case, dtype, device, model, make_ids, tmp_path, judge):
    """WEIGHTS-2: `generate` MUST go by the release: where answers end, how long they are, how they are sampled."""
    prompt = make_ids(batch=1, length=PROMPT)
    free = generated(model, prompt, COUNT)[0].tolist()
    unused, *_ = sorted(set(range(COUNT + 1)).difference(free))

    for what, ends, most in (("the second of its ends", [unused, free[3]], COUNT), ("its length", [unused], 5)):
        folder = _saying(case, tmp_path / what, {"eos_token_id": ends, "pad_token_id": unused, "max_new_tokens": most})
        wanted = until(free, ends)[:most]
        judge.exactly(
            what, str(_answer(folder, prompt, dtype)), str(wanted), detail="wanted is the answer of no end, cut"
        )
    least = {"min_new_tokens": 5, "max_new_tokens": COUNT, "pad_token_id": unused}
    for which, ends in {"first": [free[0], unused], "second": [unused, free[0]]}.items():
        found = _answer(_saying(case, tmp_path / which, {"eos_token_id": ends} | least), prompt, dtype)
        judge.exactly(f"its least length: the {which} of its ends comes before", free[0] in found[:5], False)


@torch.no_grad()
@FLOAT32
@SMALL
def test_an_answer_is_drawn_as_the_release_says(case, dtype, device, model, make_ids, tmp_path, judge):
    """WEIGHTS-2: `generate` MUST go by the release: where answers end, how long they are, how they are sampled."""
    prompt = make_ids(batch=1, length=PROMPT)
    first = generated(model, prompt, COUNT)[0].tolist()

    drawn = _answer(_saying(case, tmp_path / "drawn", HOT), prompt, dtype)
    judge.exactly("do_sample: an answer of nothing but what is ranked first", str(drawn == first), "False")
    for what, said in FIRST.items():
        found = _answer(_saying(case, tmp_path / what, HOT | said), prompt, dtype)
        judge.exactly(what, str(found), str(first), detail=f"{said} leaves nothing but what is ranked first")
    sampling = _saying(case, tmp_path / "unless", HOT)
    judge.exactly("a request that is not to be sampled", str(_answer(sampling, prompt, dtype, False)), str(first))
    for what, said in {"suppress_tokens": first[:1], "bad_words_ids": [first[:1]]}.items():
        found = _answer(_saying(case, tmp_path / what, {"max_new_tokens": COUNT, what: said}), prompt, dtype)
        judge.exactly(f"{what}: comes all the same", first[0] in found, False)


# What a release says, and what a request may say instead: what `generate` would go by if nobody said anything.
RELEASED = Sampling(temperature=3.0, top_k=7, top_p=0.8, repetition_penalty=1.6)
DEFAULTS = Sampling(temperature=1.0, top_k=50, top_p=1.0, repetition_penalty=1.0)
NAMES = ("temperature", "top_k", "top_p", "repetition_penalty")


@torch.no_grad()
@FLOAT32
@SMALL
@pytest.mark.applies(architecture=("llama",))
def test_a_request_has_what_it_says_and_the_rest_of_its_release(case, dtype, device, make_ids, tmp_path, judge):
    """WEIGHTS-2: `generate` MUST go by the release: where answers end, how long they are, how they are sampled."""
    from transformers import GenerationConfig

    prompts = make_ids(batch=2, length=PROMPT)
    released, defaults = ({name: getattr(said, name) for name in NAMES} for said in (RELEASED, DEFAULTS))
    said = {"do_sample": True, "max_new_tokens": COUNT, "eos_token_id": [1], "pad_token_id": 2, **released}
    model = from_folder(_saying(case, tmp_path, said), dtype, device)
    told = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}
    short = told | {"max_new_tokens": 5}

    def ask(**asked):
        return model.generate(prompts, attention_mask=torch.ones_like(prompts), **asked)

    breaks = {"temperature": 0.1, "top_k": 3, "stopping_criteria": Ending([], breaks=True).listed()}
    with suppress(ConnectionError):
        judge.exactly("a request that fails", str(ask(**breaks, **told)), "ConnectionError")
    for what, asked, due in (
        ("after a request that failed, one that says nothing", told, RELEASED),
        ("a request for what are the library's defaults", told | defaults, DEFAULTS),
        ("a request by a config that names its length", {"generation_config": GenerationConfig(**short)}, RELEASED),
    ):
        _drawn_by(judge, ask(**asked), due, what)
    several = ask(num_return_sequences=3)
    wanted = prompts.repeat_interleave(3, 0)
    judge.exactly("several answers lie beside their prompt", str(several[:, :PROMPT].tolist()), str(wanted.tolist()))


def _drawn_by(judge, found, due, what):
    """Scores are what `due` makes of logits, after each beginning of what was said."""
    steps = enumerate(zip(found.logits, found.scores, strict=True), PROMPT)
    wrong, off = map(sum, zip(*(misjudged(*step, found.sequences[:, :n], due) for n, step in steps), strict=True))
    judge.exactly(f"{what}: tokens left in or out in error", wrong, 0)
    judge.exactly(f"{what}: scores that are off by more than rounding", off, 0)


@torch.no_grad()
@FLOAT32
@SMALL
@pytest.mark.parametrize("asked", ["pipeline"])
@pytest.mark.applies(architecture=("llama",))
def test_a_pipeline_answers_as_the_release_says(case, dtype, asked, device, model, make_ids, tmp_path, judge):
    """WEIGHTS-2: `generate` MUST go by the release: where answers end, how long they are, how they are sampled."""
    prompt = make_ids(batch=1, length=PROMPT)
    first = generated(model, prompt, COUNT)[0].tolist()
    unused = min(set(range(COUNT + 1)).difference(first))
    text = " ".join(map(str, prompt[0].tolist()))

    told = {"how it is drawn": HOT | FIRST["top_k"], "that it is not drawn": {"do_sample": False}}
    for what, said in {**told, "where it ends": {"do_sample": False, "eos_token_id": [first[3]]}}.items():
        folder = _saying(case, tmp_path / what, {"eos_token_id": [unused], "max_new_tokens": COUNT} | said)
        (found,) = piped(from_folder(folder, dtype, device), numbered(VOCABULARY), [text])
        wanted = until(first, said.get("eos_token_id", []))
        judge.exactly(what, str(found[PROMPT:]), str(wanted), detail=f"the release says {said}")


def _answer(folder, prompt, dtype, sample=None):
    """What `generate` answers where nobody asks for anything, but perhaps for sampling or for none."""
    model = from_folder(folder, dtype, prompt.device)
    asked = {} if sample is None else {"do_sample": sample}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **asked)[0, PROMPT:].tolist()


def _saying(case, beside, said):
    """The case's checkpoint with a generation config of its own."""
    folder = beside / "released"
    shutil.copytree(case.checkpoint(), folder)
    (folder / "generation_config.json").write_text(json.dumps(said), encoding="utf-8")
    return folder


def _compared(model, said, judge):
    held = {name: value for name, value in model.generation_config.to_dict().items() if name in said}
    found, wanted = (told | {"eos_token_id": sorted(several(told.get("eos_token_id")))} for told in (held, said))
    judge.exactly("what generate goes by", json.dumps(found, sort_keys=True), json.dumps(wanted, sort_keys=True))
