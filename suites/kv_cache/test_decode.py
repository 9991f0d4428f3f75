"""Decoding with a cache computes what one prefill of the whole sequence computes."""

import pytest
import torch

from fixtures.decoding import feed

# The architectures of tier full are tried under attention so far.
pytestmark = pytest.mark.applies(tier=("standard",))


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 33], ids=["prompt-1", "prompt-33"])
def test_decode_is_as_accurate_as_prefill(case, kv_cache, dtype, prompt, device, model, make_ids, truth, judge):
    """KV-1: logits decoded token by token with a cache MUST be as close to float64 as those of one plain prefill."""
    batch, length = 2, 64
    ids = make_ids(batch, length)
    cache = kv_cache.make(model.config, batch, length)

    decoded = [feed(model, cache, ids[:, :prompt], 0)]
    for position in range(prompt, length):
        step = ids[:, position : position + 1]
        decoded.append(feed(model, cache, step, position))

    judge.exactly("tokens in the cache", int(cache.get_seq_length()), length)
    judge(torch.cat(decoded, 1), truth(model, ids, dtype), truth(model, ids, torch.float64))
