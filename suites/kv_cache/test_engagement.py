"""A cache is used: what was computed once is not computed again."""

import pytest
import torch

from fixtures.decoding import handing, padded_left
from fixtures.generation import generated
from fixtures.meters import embedded, updates
from fixtures.questions import Usage

PROMPT, COUNT, NEXT = 32, 7, 5  # groups of what is rounded are full
ANY = [Usage("any", needs=frozenset())]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("usage", ANY, ids=str)
@pytest.mark.applies(real=(False,))
def test_each_step_runs_one_token(case, kv_cache, dtype, usage, device, model, make_ids, judge):
    """KV-16: after the prompt each step MUST run one token, and write it once into each layer of the cache."""
    cache = kv_cache.make(model.config, 2, PROMPT + NEXT + 2 * COUNT)
    longer, shorter = make_ids(batch=2, length=PROMPT)
    texts, real = padded_left([longer, shorter[:20]])
    steps = [1] * (COUNT - 1)
    wanted = [PROMPT, *steps, 1 + NEXT, *steps]  # the last token of an answer goes in with the next turn
    layers = range(model.config.num_hidden_layers)

    with embedded(model) as lengths, updates(cache) as written:
        for new in (0, NEXT):
            texts = torch.cat([texts, make_ids(batch=2, length=new)], 1)
            real = torch.cat([real, torch.ones_like(texts[:, real.shape[1] :])], 1)
            texts = torch.cat([texts, generated(model, texts, COUNT, real, **handing(model, cache))], 1)

    judge.exactly("tokens that each call ran", str(lengths), str(wanted))
    judge.exactly("layers and tokens written", str(written), str([(layer, n) for n in wanted for layer in layers]))
    judge.exactly("tokens in the cache", int(cache.get_seq_length()), sum(wanted))
