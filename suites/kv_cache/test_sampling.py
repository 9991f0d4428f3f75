"""What `generate` draws has the distribution that its settings make of golden logits."""

from dataclasses import asdict

import pytest
import torch

from fixtures.generation import generated, scored
from fixtures.oracles.sampling import Sampling, probabilities

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

    whole, wrong, off = torch.cat([prompts, answers], 1), 0, 0
    for n in range(COUNT):
        held, *edges = (probabilities(logits[:, n], whole[:, : LENGTH + n], s) for s in (asked, *asked.edges()))
        less, more = (edge > 0 for edge in edges)
        kept, found = scores[:, n].isfinite(), scores[:, n].double()
        wrong += int((kept & ~more | less & ~kept).sum())
        apart = (found - found.amax(-1, keepdim=True)) - (held / held.amax(-1, keepdim=True)).log()
        bound = ROUNDINGS * found.where(kept, 0).abs().amax(-1, keepdim=True)
        off += int((apart.where(kept & (held > 0), 0).abs() > bound).sum())
    judge.exactly("tokens left in that were to be left out, or the other way round", wrong, 0)
    judge.exactly("scores that are off by more than rounding", off, 0)


@torch.no_grad()
@DTYPES
@CORE
@pytest.mark.parametrize("asked", [Sampling(), ALL], ids=["plain", "all"])
def test_rows_are_drawn_by_themselves(case, dtype, asked, device, model, make_ids, draw, truth, judge):
    """KV-25: each token MUST be drawn from what its settings make of the golden logits, by itself and anew."""
    prompts, each = make_ids(batch=PROMPTS, length=LENGTH), ROWS // PROMPTS
    prompts = prompts.repeat_interleave(each, 0)

    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=draw)))
        answers, again = (generated(model, prompts, COUNT, do_sample=True, **asdict(asked)) for _ in range(2))

    whole = torch.cat([prompts, answers], 1)
    golden = truth(model, whole, torch.float64)[:, LENGTH - 1 : -1]
    ranks, owns = [], []
    for n in range(COUNT):
        held = probabilities(golden[:, n], whole[:, : LENGTH + n], asked)
        own = held.gather(-1, answers[:, n : n + 1])
        ranks.append(held.where(held > own, 0).sum(-1).cpu() + own[:, 0].cpu() * torch.rand(ROWS, generator=draw))
        owns.append(own.cpu())
    # Of what was drawn so, the probability of all that is likelier and a random part of its own are uniform (Rosenblatt
    # 1952); and rows of one prompt begin alike by the probability of that beginning, to the power of the other rows.
    judge.uniform("distance of what was drawn from what was asked", torch.cat(ranks))
    first, own = answers[:, 0].view(PROMPTS, each), owns[0].view(PROMPTS, each)
    alike = (first == first[:, :1]).all(-1).cpu()
    judge.chance("all rows of a prompt begin alike", float((each - 1) * own[alike, 0].log().sum()))
    judge.exactly("a second request is answered alike", torch.equal(answers, again), False)
