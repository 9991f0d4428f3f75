"""What `generate` draws has the distribution that its settings make of golden logits."""

from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch

from fixtures.decoding import padded_left
from fixtures.generation import drafting, generated, scored
from fixtures.oracles.sampling import EDGE, Sampling, probabilities
from fixtures.questions import Traffic

DTYPES = pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
CORE = pytest.mark.applies(real=(False,), tier=("standard",))
# Prompts of which some leave much open, and some nothing; rows enough to show that a tenth of all goes elsewhere.
PROMPTS, LENGTH, ROWS, COUNT = 8, 21, 256, 8
ALL = Sampling(0.8, top_k=30, top_p=0.9, min_p=0.05, repetition_penalty=1.3)
ASKED = {
    "temperature": Sampling(temperature=0.6),
    "top-k": Sampling(temperature=1.5, top_k=6),
    "top-p": Sampling(temperature=0.6, top_p=0.7),
    "min-p": Sampling(temperature=1.5, min_p=0.2),
    "repetition": Sampling(repetition_penalty=1.8),
    "all": ALL,
}
# A score is rounded twice, and so is the one beside which it is held.
ROUNDINGS = 8 * 2.0**-24


@torch.no_grad()
@DTYPES
@CORE
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_scores_are_what_was_asked(case, dtype, asked, device, model, make_ids, judge):
    """KV-25: each token MUST be drawn from what its settings make of the golden logits, by itself and anew."""
    prompts = make_ids(batch=PROMPTS, length=LENGTH)

    answers, logits, scores = scored(model, prompts, COUNT, do_sample=True, **asdict(asked))

    _judge_scores(judge, asked, [(prompts, answers, logits, scores)])


@torch.no_grad()
@DTYPES
@CORE
@pytest.mark.parametrize("asked", [ASKED["repetition"]], ids=["repetition"])
@pytest.mark.parametrize("lengths", [(21, 14, 9)], ids=["padded"])
def test_scores_of_padded_rows_are_what_was_asked(case, dtype, lengths, asked, device, model, make_ids, judge):
    """KV-25: each token MUST be drawn from what its settings make of the golden logits, by itself and anew."""
    prompts = [row[:length] for row, length in zip(make_ids(len(lengths), max(lengths)), lengths, strict=True)]
    ids, real = padded_left(prompts)

    found = scored(model, ids, COUNT, attention_mask=real, do_sample=True, **asdict(asked))

    _judge_scores(judge, asked, [tuple(rows[None] for rows in each) for each in zip(prompts, *found, strict=True)])


@torch.no_grad()
@DTYPES
@CORE
@pytest.mark.parametrize("asked", [Sampling(), ALL], ids=["plain", "all"])
def test_rows_are_drawn_by_themselves(case, dtype, asked, device, model, make_ids, draw, truth, judge):
    """KV-25: each token MUST be drawn from what its settings make of the golden logits, by itself and anew."""
    each = ROWS // PROMPTS
    prompts = make_ids(batch=PROMPTS, length=LENGTH).repeat_interleave(each, 0)

    with _seeded(draw):
        answers, again = (generated(model, prompts, COUNT, do_sample=True, **asdict(asked)) for _ in range(2))

    ranks, owns = _ranked(truth, model, prompts, answers, asked, draw)
    judge.uniform("distance of what was drawn from what was asked", ranks)
    # Rows of one prompt begin alike by the probability of that beginning, to the power of the other rows.
    first, own = answers[:, 0].view(PROMPTS, each), owns[:, 0].view(PROMPTS, each)
    alike = (first == first[:, :1]).all(-1).cpu()
    judge.chance("all rows of a prompt begin alike", float((each - 1) * own[alike, 0].log().sum()))
    judge.exactly("a second request is answered alike", torch.equal(answers, again), False)


# Of two tokens as likely as each other a sure draft is refused once in two: drawn anew from both, the one that was
# drafted would come three times in four.
HOT, EVEN = Sampling(temperature=1.5), Sampling(temperature=50.0, top_k=2)
DRAFTS = {"prompt-lookup": (HOT, 100), "own-draft": (HOT, 100), "poor-draft": (HOT, 100), "sure-draft": (EVEN, 400)}


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("drafts", DRAFTS)
@pytest.mark.applies(real=(False,), tier=("standard",), architecture=("llama",))
def test_a_drafted_answer_is_drawn(case, dtype, drafts, device, model, make_ids, draw, truth, judge):
    """KV-25: each token MUST be drawn from what its settings make of the golden logits, by itself and anew."""
    prompt, (asked, count) = make_ids(batch=1, length=LENGTH), DRAFTS[drafts]

    with _seeded(draw):
        answer = generated(model, prompt, count, do_sample=True, **asdict(asked), **drafting(drafts, model))

    ranks, _ = _ranked(truth, model, prompt, answer, asked, draw)
    judge.uniform("distance of what was drawn from what was asked", ranks)


# Prompts that come twice, or that want two answers each, and are to be answered anew.
HALF, NEEDS = (21,) * 8, frozenset({"paged", "asked"})
TOGETHER = [
    pytest.param(Traffic("drawn", lengths=HALF, count=12, needs=NEEDS), 2, {}),
    pytest.param(
        Traffic("drawn-twice", lengths=HALF, count=12, needs=NEEDS | {"forked"}),
        1,
        {"num_return_sequences": 2},
        marks=pytest.mark.applies(architecture=("llama",)),
    ),
]


@torch.no_grad()
@DTYPES
@CORE
@pytest.mark.parametrize(("traffic", "times", "how"), TOGETHER, ids=[str(each.values[0]) for each in TOGETHER])
@pytest.mark.optional("paged attention")
def test_requests_of_a_batch_are_drawn(
    case, attention, dtype, traffic, times, how, device, model, make_ids, draw, truth, judge
):
    """KV-25: each token MUST be drawn from what its settings make of the golden logits, by itself and anew."""
    prompts, asked = make_ids(batch=len(traffic.lengths), length=traffic.lengths[0]), Sampling(1.5, top_k=30, top_p=0.7)

    with _seeded(draw):
        texts = prompts.repeat_interleave(times, 0).tolist()
        answers = attention.answer(model, texts, traffic.count, do_sample=True, **asdict(asked), **how)

    both = prompts.repeat_interleave(2, 0)
    judge.exactly("tokens generated", sum(map(len, answers)), traffic.count * len(both), unit="tokens")
    said = torch.tensor(answers, device=device)
    ranks, owns = _ranked(truth, model, both, said, asked, draw)
    judge.uniform("distance of what was drawn from what was asked", ranks)
    alike = (said[0::2] == said[1::2]).all(-1).cpu()
    judge.chance("both answers to a prompt are alike", float(owns[1::2][alike].log().sum()))


def _judge_scores(judge, asked, answered):
    """Of texts of one length each: prompts, answers, and the logits and scores of these."""
    wrong, off = 0, 0
    for prompts, answers, logits, scores in answered:
        whole, start = torch.cat([prompts, answers], 1), prompts.shape[1]
        for n in range(COUNT):
            held, less, more = (probabilities(logits[:, n], whole[:, : start + n], asked, e) for e in (0, -EDGE, EDGE))
            kept, found = scores[:, n].isfinite(), scores[:, n].double()
            wrong += int((kept & (more == 0) | (less > 0) & ~kept).sum())
            apart = (found - found.amax(-1, keepdim=True)) - (held / held.amax(-1, keepdim=True)).log()
            bound = ROUNDINGS * found.where(kept, 0).abs().amax(-1, keepdim=True)
            off += int((apart.where(kept & (held > 0), 0).abs() > bound).sum())
    judge.exactly("tokens left in that were to be left out, or the other way round", wrong, 0)
    judge.exactly("scores that are off by more than rounding", off, 0)


@contextmanager
def _seeded(draw):
    """What is drawn inside depends on the check's own numbers, and nothing outside on it."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=draw)))
        yield


def _ranked(truth, model, prompts, answers, asked, draw):
    """Of each token that was drawn: the probability of all that is likelier and a random part of its own; and its own.

    The first are uniform on 0 … 1 where tokens were drawn as asked (Rosenblatt 1952).
    """
    (rows, count), start = answers.shape, prompts.shape[1]
    whole = torch.cat([prompts, answers], 1)
    golden, ranks, owns = truth(model, whole, torch.float64)[:, start - 1 : -1], [], []
    for n in range(count):
        held = probabilities(golden[:, n], whole[:, : start + n], asked)
        own = held.gather(-1, answers[:, n : n + 1])
        ranks.append(held.where(held > own, 0).sum(-1).cpu() + own[:, 0].cpu() * torch.rand(rows, generator=draw))
        owns.append(own[:, 0].cpu())
    return torch.cat(ranks), torch.stack(owns, 1)
