"""What `generate` draws has the distribution that its settings make of golden logits."""

import pytest
import torch

from fixtures.decoding import padded_left
from fixtures.generation import drafting, generated, scored, seeded
from fixtures.oracles.sampling import ROUNDINGS, Sampling, misjudged, probabilities
from fixtures.questions import Traffic

DTYPES = pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
CORE = pytest.mark.applies(real=(False,), tier=("standard",))
# Prompts of which some leave much open, and some nothing; rows enough to show that a tenth of all goes elsewhere.
PROMPTS, LENGTH, ROWS, COUNT = 8, 21, 256, 8
# Texts longer than the 64 tokens that some servers look back, that end as they begin: what followed then is known.
TEXT, SAME = 79, [11, 5, 8]
ALL = Sampling(0.8, top_k=30, top_p=0.9, min_p=0.05, repetition_penalty=1.3)
ASKED = {
    "temperature": Sampling(temperature=0.6),
    "top-k": Sampling(temperature=1.5, top_k=6),
    "top-p": Sampling(temperature=0.6, top_p=0.7),
    "min-p": Sampling(temperature=1.5, min_p=0.2),
    "repetition": Sampling(repetition_penalty=1.8),
    "all": ALL,
}
# What no architecture has a part in.
MORE = {
    "cold": Sampling(temperature=0.004),
    "top-k-100": Sampling(temperature=1.5, top_k=100),
    "typical": Sampling(temperature=1.5, typical_p=0.6),
    "epsilon": Sampling(temperature=1.5, epsilon_cutoff=0.02),
    "eta": Sampling(temperature=1.5, eta_cutoff=0.05),
    "n-grams": Sampling(no_repeat_ngram_size=len(SAME)),
    "bad-words": Sampling(bad_words_ids=[[*SAME, 9], [SAME[-1], 14], [7]]),
    "biases": Sampling(sequence_bias=[[[*SAME, 9], -2.5], [[SAME[-1], 14], 3.5], [[7], 1.5]]),
    "ends": Sampling(eos_token_id=[3, 7], min_length=TEXT + 3, exponential_decay_length_penalty=(4, 1.2)),
    "last": Sampling(forced_eos_token_id=7),
}
LLAMA = pytest.mark.applies(architecture=("llama",))
SCORED = [pytest.param(asked, torch.float32, id=f"{name}-float32") for name, asked in ASKED.items()]
SCORED += [pytest.param(asked, torch.float32, id=f"{name}-float32", marks=LLAMA) for name, asked in MORE.items()]
# Logits of half precision are processed in float32; nothing is left out of them, since many are one number.
HALF = Sampling(temperature=0.7, repetition_penalty=1.3)
SCORED += [pytest.param(HALF, torch.bfloat16, id="half-bfloat16", marks=LLAMA)]


@torch.no_grad()
@CORE
@pytest.mark.parametrize(("asked", "dtype"), SCORED)
def test_scores_are_what_was_asked(case, asked, dtype, device, model, make_ids, judge):
    """KV-25: each token MUST be drawn from what its settings make of the golden logits, by itself and anew."""
    prompts = make_ids(batch=PROMPTS, length=TEXT)
    prompts[:, : len(SAME)] = prompts[:, -len(SAME) :] = torch.tensor(SAME, device=device)

    answers, logits, scores = scored(model, prompts, COUNT, do_sample=True, **asked.request())

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

    found = scored(model, ids, COUNT, attention_mask=real, do_sample=True, **asked.request())

    _judge_scores(judge, asked, [tuple(rows[None] for rows in each) for each in zip(prompts, *found, strict=True)])


@torch.no_grad()
@CORE
@LLAMA
@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=["bfloat16"])
@pytest.mark.parametrize("beams", [3])
def test_scores_of_beams_are_log_probabilities(case, beams, dtype, device, model, make_ids, judge):
    """KV-25: each token MUST be drawn from what its settings make of the golden logits, by itself and anew."""
    prompts = make_ids(batch=PROMPTS, length=LENGTH)

    answers, logits, scores = scored(model, prompts, COUNT, num_beams=beams, num_return_sequences=beams)

    _judge_scores(judge, Sampling(), [(prompts.repeat_interleave(beams, 0), answers, logits, scores)])
    sums, bound = scores.double().logsumexp(-1).flatten(), ROUNDINGS * float(scores.abs().max())
    judge.between("logarithm of the sum that is furthest from 1", float(sums[sums.abs().argmax()]), -bound, bound)


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("asked", [ASKED["repetition"]], ids=["repetition"])
@pytest.mark.applies(real=(True,), tier=("standard",))
def test_scores_of_a_whole_vocabulary_are_what_was_asked(case, dtype, asked, device, model, judge):
    """KV-25: each token MUST be drawn from what its settings make of the golden logits, by itself and anew."""
    prompts = torch.linspace(0, model.config.get_text_config().vocab_size - 1, TEXT, device=device).long()[None]

    _judge_scores(judge, asked, [(prompts, *scored(model, prompts, 1, do_sample=True, **asked.request()))])


@torch.no_grad()
@DTYPES
@CORE
@pytest.mark.parametrize(("asked", "copies"), [(Sampling(), 1), (ALL, ROWS // PROMPTS)], ids=["plain", "all"])
def test_rows_are_drawn_by_themselves(case, dtype, asked, copies, device, model, make_ids, draw, truth, judge):
    """KV-25: each token MUST be drawn from what its settings make of the golden logits, by itself and anew."""
    drawn, each = make_ids(batch=PROMPTS, length=LENGTH), ROWS // PROMPTS
    given, how = drawn.repeat_interleave(copies, 0), asked.request() | {"num_return_sequences": each // copies}
    prompts = drawn.repeat_interleave(each, 0)

    with seeded(draw):
        answers, again = (generated(model, given, COUNT, do_sample=True, **how) for _ in range(2))

    ranks, owns = _ranked(truth, model, prompts, answers, asked, draw)
    judge.uniform("distance of what was drawn from what was asked", ranks)
    # Rows of one prompt begin alike by the probability of that beginning, to the power of the other rows.
    first, own = answers[:, 0].view(PROMPTS, each), owns[:, 0].view(PROMPTS, each)
    alike = (first == first[:, :1]).all(-1).cpu()
    judge.chance("all rows of a prompt begin alike", float((each - 1) * own[alike, 0].log().sum()))
    judge.chance("a second request is answered alike", float(owns.log().sum()) if torch.equal(answers, again) else 0.0)


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

    with seeded(draw):
        answer = generated(model, prompt, count, do_sample=True, **asked.request(), **drafting(drafts, model))

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

    with seeded(draw):
        texts = prompts.repeat_interleave(times, 0).tolist()
        answers = attention.answer(model, texts, traffic.count, do_sample=True, **asked.request(), **how)

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
        for n in range(scores.shape[1]):
            place = {"answered": n, "last": n == COUNT - 1}
            found = misjudged(logits[:, n], scores[:, n], whole[:, : start + n], asked, **place)
            wrong, off = wrong + found[0], off + found[1]
    judge.exactly("tokens left in that were to be left out, or the other way round", wrong, 0)
    judge.exactly("scores that are off by more than rounding", off, 0)


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
