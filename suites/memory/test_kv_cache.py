"""A key-value cache takes the bytes that arithmetic predicts."""

import pytest
import torch

from fixtures.decoding import feed
from fixtures.meters import storage_bytes, tensors
from fixtures.oracles.memory import kv_bytes, windows

PROMPT, STEPS = 40, 3


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_cache_takes_the_predicted_bytes(case, kv_cache, dtype, device, model, make_ids, judge):
    """MEM-2: a cache MUST take exactly 2 · kv_heads · head_dim · itemsize bytes for each token it has to keep."""
    batch, length = 2, PROMPT + STEPS
    ids = make_ids(batch, length)
    cache = kv_cache.make(model.config, batch, length)

    feed(model, cache, ids[:, :PROMPT], 0)
    # A sliding layer holds views on the whole prompt until the first step.
    for position in range(PROMPT, length):
        feed(model, cache, ids[:, position : position + 1], position)

    slots = [kv_cache.slots(length, length, window) for window in windows(model.config)]
    predicted = kv_bytes(model.config, batch=batch, slots=slots, itemsize=dtype.itemsize)
    judge.exactly("bytes of the cache", storage_bytes(tensors(cache)), predicted, unit="bytes")
