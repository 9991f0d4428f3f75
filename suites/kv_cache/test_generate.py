"""What `generate` answers on a cache is what the logits of full recomputation rank first."""

import pytest
import torch

from fixtures.decoding import handing, padded_left
from fixtures.generation import drafting, generated, loop, using
from fixtures.questions import Usage

DTYPES = pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
# Long enough that windows are left behind, and no token of a trained model is a tie by construction.
PROMPT, COUNT = 21, 10
WAYS = {
    "cached": lambda model, kv_cache, prompt: generated(model, prompt, COUNT, **using(model, kv_cache, PROMPT + COUNT)),
    "uncached": lambda model, kv_cache, prompt: generated(model, prompt, COUNT, use_cache=False),
    "by-hand": lambda model, kv_cache, prompt: loop(
        model, kv_cache.make(model.config, 1, PROMPT + COUNT), prompt, COUNT
    ),
}


@torch.no_grad()
@DTYPES
def test_greedy_tokens_are_those_ranked_first(case, kv_cache, dtype, device, model, make_ids, truth, judge):
    """KV-14: greedy tokens, with a cache, without one and by hand, MUST be those that golden logits rank first."""
    prompt = make_ids(batch=1, length=PROMPT)

    answers = {way: ask(model, kv_cache, prompt)[0].tolist() for way, ask in WAYS.items()}

    for way, tokens in answers.items():
        whole = torch.cat([prompt, torch.tensor([tokens], device=device)], 1)
        golden, reference = (truth(model, whole, d)[0, PROMPT - 1 : -1] for d in (torch.float64, dtype))
        judge.exactly(f"{way}: tokens", len(tokens), COUNT)
        judge.ranked_first(tokens, reference, golden, what=way)


CORE = pytest.mark.applies(tier=("standard",))


@torch.no_grad()
@DTYPES
# A prompt as long as a step, one from which 128 tokens are left behind, and one that is longer.
@pytest.mark.parametrize("length", [1, 125, 131], ids=["from-1", "from-125", "from-131"])
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_greedy_tokens_after_any_prompt(case, kv_cache, dtype, length, device, model, make_ids, truth, judge):
    """KV-14: greedy tokens, with a cache, without one and by hand, MUST be those that golden logits rank first."""
    prompt = make_ids(batch=1, length=length)

    tokens = generated(model, prompt, COUNT, **using(model, kv_cache, length + COUNT))

    whole = torch.cat([prompt, tokens], 1)
    golden, reference = (truth(model, whole, d)[0, length - 1 : -1] for d in (torch.float64, dtype))
    judge.ranked_first(tokens[0].tolist(), reference, golden, what=f"after {length}")


def cut(answers, ends, pad):
    """Each answer to the first of `ends`, and padded to the longest."""
    stops = [next((n for n, token in enumerate(row, 1) if token in ends), len(row)) for row in answers]
    return [row[:stop] + [pad] * (max(stops) - stop) for row, stop in zip(answers, stops, strict=True)]


@torch.no_grad()
@DTYPES
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_an_answer_ends_with_its_end(case, kv_cache, dtype, device, model, make_ids, judge):
    """KV-24: an answer MUST end with the token that ends it, and other rows MUST go on as they do without an end."""
    longer, shorter = make_ids(batch=2, length=PROMPT)
    ids, real = padded_left([longer, shorter[:14]])

    def ask(**how):
        return generated(model, ids, COUNT, real, **how, **using(model, kv_cache, PROMPT + COUNT, rows=2)).tolist()

    free = ask()
    pad = min(set(range(2 * COUNT + 1)).difference(*free))  # no token of the answers, so that a cut shows
    of_one, of_other = free[0][3], free[1][6]
    # Chat models have several: the end of a turn, and the end of text.
    for what, ends in {"one end": [of_one], "two ends": [of_other, of_one]}.items():
        ended = ask(eos_token_id=ends, pad_token_id=pad)
        judge.exactly(f"{what}: answers", str(ended), str(cut(free, ends, pad)))
        judge.exactly(f"{what}: an answer is cut", str(ended[0] == free[0]), "False")


SPECULATE = frozenset({"exact", "speculate"})
DRAFTS = [
    pytest.param(Usage("prompt-lookup", needs=SPECULATE), marks=CORE),
    # It drafts itself, and is always right; and a model that knows nothing drafts, and is nearly always wrong.
    pytest.param(Usage("own-draft", needs=SPECULATE), marks=CORE),
    Usage("poor-draft", needs=SPECULATE),
]


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("drafts", DRAFTS, ids=str)
@pytest.mark.applies(real=(False,))
def test_speculation_gives_greedy_tokens(case, kv_cache, dtype, drafts, device, model, make_ids, truth, judge):
    """KV-15: assisted decoding and prompt lookup MUST give the tokens that golden logits rank first."""
    seven = make_ids(batch=1, length=7)
    prompt = torch.cat([seven] * 4, 1)  # repeated, so that there is something to look up
    cache = handing(model, kv_cache.make(model.config, 1, 28 + COUNT))

    tokens = generated(model, prompt, COUNT, **drafting(drafts.name, model), **cache)[0].tolist()

    whole = torch.cat([prompt, torch.tensor([tokens], device=device)], 1)
    golden, reference = (truth(model, whole, d)[0, 27:-1] for d in (torch.float64, dtype))
    judge.exactly("tokens are enough", len(tokens) >= COUNT, True)
    judge.ranked_first(tokens, reference, golden, what=drafts.name)
