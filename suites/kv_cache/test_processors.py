"""What a caller hands to `generate`, a processor or a choice of tokens, sees each row's own text, and acts."""

import pytest
import torch

from fixtures.generation import Forbidding, drafting, generated, seeded
from fixtures.models import VOCABULARY

DTYPES = pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
LLAMA = pytest.mark.applies(real=(False,), tier=("standard",), architecture=("llama",))
LENGTH, COUNT = 21, 8
HOT, BEAMS = {"do_sample": True, "temperature": 1.5, "top_k": 0}, {"num_beams": 3}
# Of prompts that are answered twice 6 in 183 were answered alike by chance, over 61 seeds: all of so many once in 1e11.
MANY = 8
# How many prompts, and what is asked for.
WAYS = {"greedy": (3, {}), "drawn": (3, HOT), "beams": (3, BEAMS), "drawn-beams": (3, BEAMS | HOT)}


@torch.no_grad()
@DTYPES
@LLAMA
@pytest.mark.parametrize("way", [*WAYS, "own-draft"])
def test_a_processor_sees_each_text(case, dtype, way, device, model, make_ids, truth, judge):
    """KV-25: each token MUST be drawn from what its settings make of the golden logits, by itself and anew."""
    rows, how = (WAYS | {"own-draft": (1, drafting("own-draft", model))})[way]
    prompts, odd = make_ids(batch=rows, length=LENGTH), Forbidding(range(1, VOCABULARY, 2))

    found = generated(model, prompts, COUNT, logits_processor=odd.listed(), **how)

    judge.exactly("tokens that the caller's processor leaves out", int((found % 2).sum()), 0)
    judge.exactly("the processor saw a text", bool(odd.seen), True)
    seen = [(prompts, truth(model, prompts, dtype)[:, -1]), *odd.seen]  # the plain reference would show it this first
    said = [int(token) for _, scores in seen for token in scores.argmax(-1)]
    golden, reference = (torch.cat([truth(model, ids, d)[:, -1] for ids, _ in seen]) for d in (torch.float64, dtype))
    judge.ranked_first(said, reference, golden, what="what is ranked first in the scores beside a text")


@torch.no_grad()
@DTYPES
@LLAMA
@pytest.mark.parametrize("way", WAYS)
def test_a_row_says_what_it_may(case, dtype, way, device, model, make_ids, judge):
    """KV-25: each token MUST be drawn from what its settings make of the golden logits, by itself and anew."""
    rows, how = WAYS[way]
    prompts, others = make_ids(batch=rows, length=LENGTH), []

    def allowed(row, ids):
        """A row may say every third token, from its own number on."""
        others.extend(torch.nonzero(ids[:LENGTH] != prompts[row]).tolist())
        return list(range(row, VOCABULARY, rows))

    found = generated(model, prompts, COUNT, prefix_allowed_tokens_fn=allowed, **how)

    judge.exactly("tokens of another row's prompt beside a row's number", len(others), 0)
    own = torch.arange(rows, device=device)[:, None]
    judge.exactly("tokens that another row may say", int((found % rows != own).sum()), 0)


@torch.no_grad()
@DTYPES
@LLAMA
@pytest.mark.parametrize("way", ["drawn-beams"])
def test_beams_are_drawn(case, dtype, way, device, model, make_ids, draw, judge):
    """KV-25: each token MUST be drawn from what its settings make of the golden logits, by itself and anew."""
    how = WAYS[way][1]
    prompts = make_ids(batch=MANY, length=LENGTH)

    with seeded(draw):
        first, second = (generated(model, prompts, COUNT, **how) for _ in range(2))

    judge.exactly("a second request is answered alike", torch.equal(first, second), False)


@torch.no_grad()
@DTYPES
@LLAMA
@pytest.mark.parametrize("way", ["drawn", "drawn-beams"])
def test_a_seed_gives_its_answer(case, dtype, way, device, model, make_ids, draw, judge):
    """KV-10: a second request, on a cache that was reset or on a new one, MUST be answered as if it were the first."""
    rows, how = WAYS[way]
    prompts, answers = make_ids(batch=rows, length=LENGTH), []

    for _ in range(2):
        with seeded(torch.Generator().manual_seed(draw.initial_seed())):
            answers.append(generated(model, prompts, COUNT, **how).tolist())

    judge.exactly("the answer to the same seed", str(answers[1]), str(answers[0]))
