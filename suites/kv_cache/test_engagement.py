"""A cache is used: what was computed once is not computed again."""

import pytest
import torch

from fixtures.decoding import handing
from fixtures.generation import generated
from fixtures.meters import embedded, updates
from fixtures.questions import Usage

PROMPT, COUNT = 32, 7  # groups of what is rounded are full
ANY = [Usage("any", needs=frozenset())]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("usage", ANY, ids=str)
@pytest.mark.applies(real=(False,))
def test_each_step_runs_one_token(case, kv_cache, dtype, usage, device, model, make_ids, judge):
    """KV-16: after the prompt each step MUST run one token, and write it once into each layer of the cache."""
    cache = kv_cache.make(model.config, 1, PROMPT + COUNT)
    wanted = [PROMPT, *[1] * (COUNT - 1)]
    layers = range(model.config.num_hidden_layers)

    with embedded(model) as lengths, updates(cache) as written:
        generated(model, make_ids(batch=1, length=PROMPT), COUNT, **handing(model, cache))

    judge.exactly("tokens that each call ran", str(lengths), str(wanted))
    judge.exactly("layers and tokens written", str(written), str([(layer, n) for n in wanted for layer in layers]))
    judge.exactly("tokens in the cache", int(cache.get_seq_length()), sum(wanted))
