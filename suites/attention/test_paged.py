"""Requests that share one packed sequence and a paged cache are answered as if each were alone."""

import pytest
import torch

from fixtures.generation import until
from fixtures.paged import Wish
from fixtures.questions import Traffic

LLAMA = pytest.mark.applies(architecture=("llama",))  # which keeps all tokens: a window frees pages by itself
TRAFFIC = [
    Traffic("fits", lengths=(5, 33), count=12),
    # longer than a page, which has 256 tokens: alone, and with a beginning that all share, of less than a page or more
    Traffic("two-pages", lengths=(300, 5), count=12),
    Traffic("alike-200", lengths=(300, 290), count=12, alike=200),
    Traffic("alike-270", lengths=(300, 290), count=12, alike=270),
    Traffic("splits-a-prompt", lengths=(33, 6, 90, 3), count=12),  # more than the tokens that go in at once
    # of two pages, which hold the prompts and not their answers too, or which others held that were cancelled
    pytest.param(Traffic("crowded", (250, 248), count=12, room=512, needs=frozenset({"paged", "room"})), marks=LLAMA),
    pytest.param(
        Traffic("after-others", (33, 5), 12, room=512, cancelled=2, needs=frozenset({"paged", "room", "cancelled"})),
        marks=LLAMA,
    ),
]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("traffic", TRAFFIC, ids=str)
@pytest.mark.applies(real=(False,))
@pytest.mark.optional("paged attention")
def test_tokens_are_those_that_the_logits_rank_first(
    case, attention, dtype, traffic, device, model, make_ids, truth, judge
):
    """ATTN-18: what is generated on a paged cache MUST be, token by token, what the golden logits rank first."""
    texts = make_ids(batch=len(traffic.lengths), length=max(traffic.lengths))
    texts[:, : traffic.alike] = texts[0, : traffic.alike]
    prompts = [text[:length] for text, length in zip(texts, traffic.lengths, strict=True)]

    answers = attention.answer(model, [prompt.tolist() for prompt in prompts], traffic.count, **traffic.options())

    judge.exactly("tokens generated", sum(map(len, answers)), traffic.count * len(prompts), unit="tokens")
    for prompt, answer in zip(prompts, answers, strict=True):
        _judge_answer(judge, truth, model, prompt, answer, dtype)


ASKED = [Traffic("ends", lengths=(33, 5), count=12, needs=frozenset({"paged", "asked"}))]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("traffic", ASKED, ids=str)
@pytest.mark.applies(real=(False,))
@pytest.mark.optional("paged attention")
def test_an_answer_ends_with_any_of_its_ends(case, attention, dtype, traffic, device, model, make_ids, judge):
    """ATTN-18: what is generated on a paged cache MUST be, token by token, what the golden logits rank first."""
    texts = make_ids(batch=len(traffic.lengths), length=max(traffic.lengths))
    prompts = [text[:length].tolist() for text, length in zip(texts, traffic.lengths, strict=True)]

    free = attention.answer(model, prompts, traffic.count)
    # The second is at its end before the first is.
    ends = [min(set(range(2 * traffic.count + 1)).difference(*free)), *free[0][6:7], *free[1][3:4]]
    ended = attention.answer(model, prompts, traffic.count, eos_token_id=ends)

    judge.exactly("tokens generated", sum(map(len, free)), traffic.count * len(prompts), unit="tokens")
    judge.exactly("answers", str(ended), str([until(answer, ends) for answer in free]))
    judge.exactly("an answer is cut", str(ended == free), "False")


SEVERAL = [Traffic("several", lengths=(300, 33), count=12, needs=frozenset({"paged", "asked", "forked"}))]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("traffic", SEVERAL, ids=str)
@pytest.mark.applies(architecture=("llama",), real=(False,), tier=("standard",))
@pytest.mark.optional("paged attention")
def test_each_of_several_answers_goes_on_from_its_prompt(
    case, attention, dtype, traffic, device, model, make_ids, truth, judge
):
    """ATTN-18: what is generated on a paged cache MUST be, token by token, what the golden logits rank first."""
    texts = make_ids(batch=len(traffic.lengths), length=max(traffic.lengths))
    prompts = [text[:length] for text, length in zip(texts, traffic.lengths, strict=True)]

    # Drawn, since `generate` gives a greedy answer once, of nothing but what is ranked first.
    first = {"do_sample": True, "top_k": 1, "num_return_sequences": 3}
    answers = attention.answer(model, [prompt.tolist() for prompt in prompts], traffic.count, **first)

    judge.exactly("tokens generated", sum(map(len, answers)), traffic.count * 3 * len(prompts), unit="tokens")
    for number, answer in enumerate(answers):
        _judge_answer(judge, truth, model, prompts[number // 3], answer, dtype)


# Requests that are to be answered by what is ranked first, beside others that are drawn from nearly all tokens alike.
HOT, COLD = 100.0, 1e-9
OWN = [Traffic("each-its-own", lengths=(33, 5, 21, 9), count=4, needs=frozenset({"paged", "managed"}))]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("traffic", OWN, ids=str)
@pytest.mark.applies(architecture=("llama",), real=(False,), tier=("standard",), saved=(True,))
@pytest.mark.optional("paged attention")
def test_each_request_is_answered_as_it_asks(case, attention, dtype, traffic, device, make_ids, truth, judge):
    """ATTN-18: what is generated on a paged cache MUST be, token by token, what the golden logits rank first."""
    model = case.load(dtype, device)
    before = model.config._attn_implementation
    texts = make_ids(batch=len(traffic.lengths), length=max(traffic.lengths))
    prompts = [text[:length] for text, length in zip(texts, traffic.lengths, strict=True)]
    asked = [(prompt, traffic.count + 3 * n, (HOT, COLD)[n % 2]) for n, prompt in enumerate(prompts)]

    told = attention.manage(model, [Wish(prompt.tolist(), *more) for prompt, *more in asked])

    judge.exactly("attention that the model is left with", model.config._attn_implementation, before)
    for (prompt, count, temperature), one in zip(asked, told, strict=True):
        what = f"prompt of {len(prompt)}"
        judge.exactly(f"{what}: tokens at each result", str(one.steps), str(list(range(1, count + 1))))
        golden, reference = (_after(truth, model, prompt, one.tokens, d) for d in (torch.float64, dtype))
        _judge_own[temperature](judge, one, reference, golden, what)


def _after(truth, model, prompt, answer, dtype):
    """Logits of each token of an answer `(n,)` to a prompt, `(n, vocabulary)`."""
    whole = torch.cat([prompt, torch.tensor(answer, dtype=torch.long, device=prompt.device)])[None]
    return truth(model, whole, dtype)[0, len(prompt) - 1 : -1]


def _judge_answer(judge, truth, model, prompt, answer, dtype):
    golden, reference = (_after(truth, model, prompt, answer, d) for d in (torch.float64, dtype))
    judge.ranked_first(answer, reference, golden, what=f"prompt of {len(prompt)}")


def _hot(judge, told, reference, golden, what):
    said = torch.tensor(told.logprobs)
    judge.log_probabilities(said, told.tokens, reference / HOT, golden / HOT, what=what)


def _cold(judge, told, reference, golden, what):
    judge.ranked_first(told.tokens, reference, golden, what=what)


_judge_own = {HOT: _hot, COLD: _cold}
