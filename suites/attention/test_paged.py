"""Requests that share one packed sequence and a paged cache are answered as if each were alone."""

import pytest
import torch

from fixtures.generation import until
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
        whole = torch.cat([prompt, torch.tensor(answer, dtype=torch.long, device=device)])[None]
        golden, reference = (truth(model, whole, d)[0, len(prompt) - 1 : -1] for d in (torch.float64, dtype))
        judge.ranked_first(answer, reference, golden, what=f"prompt of {len(prompt)}")


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
    ends = [min(set(range(2 * traffic.count + 1)).difference(*free)), free[0][3], free[1][6]]
    ended = attention.answer(model, prompts, traffic.count, eos_token_id=ends)

    judge.exactly("answers", str(ended), str([until(answer, ends) for answer in free]))
    judge.exactly("an answer is cut", str(ended == free), "False")
