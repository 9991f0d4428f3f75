"""What `generate` says of its answers is theirs: log probabilities, logits, scores of searches, caches."""

import pytest
import torch

from fixtures.decoding import handing, padded_left
from fixtures.generation import described, drafting, scored, until
from fixtures.judgement import ROUNDINGS
from fixtures.models import VOCABULARY

DTYPES = pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
LLAMA = pytest.mark.applies(real=(False,), tier=("standard",), architecture=("llama",))
PROMPT, COUNT = 21, 10


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("asked", [{"repetition_penalty": 1.8}], ids=["repetition"])
@LLAMA
def test_log_probabilities_are_of_the_tokens(case, dtype, asked, device, model, make_ids, truth, judge):
    """KV-25: each token MUST be drawn from what its settings make of the golden logits, by itself and anew."""
    prompts = make_ids(batch=2, length=PROMPT)

    found = described(model, prompts, COUNT, **asked)
    # Of logits as they were before the penalty, which has its say in scores.
    said = model.compute_transition_scores(found.sequences, found.logits, normalize_logits=True)

    judge.exactly("tokens and log probabilities", str(list(said.shape)), str([2, COUNT]))
    golden, reference = (truth(model, found.sequences, d)[:, PROMPT - 1 : -1] for d in (torch.float64, dtype))
    for row, tokens in enumerate(found.sequences[:, PROMPT:].tolist()):
        judge.log_probabilities(said[row], tokens, reference[row], golden[row], what=f"row {row}")


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("drafts", ["prompt-lookup", "own-draft", "poor-draft"])
@LLAMA
def test_a_drafted_token_comes_with_its_logits(case, dtype, drafts, device, model, make_ids, judge):
    """KV-15: speculation MUST give the tokens that golden logits rank first, and take drafts that are right."""
    prompt = make_ids(batch=1, length=7).repeat(1, 4)

    tokens, *told = scored(model, prompt, COUNT, **drafting(drafts, model))

    for what, steps in zip(("logits", "scores"), told, strict=True):
        judge.exactly(f"what {what} rank first", str(steps.argmax(-1).tolist()), str(tokens.tolist()))


ENDS, LENGTHS, PENALTY = list(range(0, VOCABULARY, 4)), (21, 14, 9), 2.0


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("beams", [3])
@LLAMA
def test_scores_of_a_search_are_those_of_its_tokens(case, dtype, beams, device, model, make_ids, truth, judge):
    """KV-9: beam search on a cache MUST find the sequence that a search finds which recomputes all, ties aside."""
    prompts = [row[:n] for row, n in zip(make_ids(len(LENGTHS), max(LENGTHS)), LENGTHS, strict=True)]
    ids, real = padded_left(prompts)

    how = {"num_beams": beams, "eos_token_id": ENDS, "length_penalty": PENALTY}
    found = described(model, ids, COUNT, real, **how)
    said = model.compute_transition_scores(found.sequences, found.scores, found.beam_indices)

    for row, prompt in enumerate(prompts):
        answer = torch.tensor(until(found.sequences[row, ids.shape[1] :].tolist(), ENDS), device=device)
        whole, each = torch.cat([prompt, answer])[None], said[row, : len(answer)]
        golden, reference = (truth(model, whole, d)[0, len(prompt) - 1 : -1] for d in (torch.float64, dtype))
        judge.log_probabilities(each, answer.tolist(), reference, golden, what=f"row {row}")
        share = float(found.sequences_scores[row] * len(answer) ** PENALTY / each.sum()) - 1
        judge.between(f"row {row}: its score beside its tokens'", share, -ROUNDINGS, ROUNDINGS)


@torch.no_grad()
@DTYPES
@LLAMA
def test_a_cache_that_was_handed_out_stays(case, dtype, device, model, make_ids, truth, judge):
    """KV-11: texts that share a cached prefix, and turns of one chat, MUST be answered as if each stood alone."""
    texts, caches = [row[None] for row in make_ids(batch=2, length=PROMPT)], [{}, {}]

    for _ in range(2):  # the chats take turns
        for chat, text in enumerate(texts):
            found = described(model, text, COUNT, **caches[chat])
            texts[chat] = torch.cat([found.sequences, make_ids(batch=1, length=3)], 1)
            caches[chat] = handing(model, found.past_key_values)

    for chat, text in enumerate(texts):
        golden, reference = (truth(model, text, d)[0] for d in (torch.float64, dtype))
        for turn, start in enumerate((PROMPT, PROMPT + COUNT + 3)):
            answer, before = text[0, start : start + COUNT].tolist(), slice(start - 1, start + COUNT - 1)
            judge.ranked_first(answer, reference[before], golden[before], what=f"chat {chat}, turn {turn}")
