"""What a cached step needs: its token's keys and values, and room to copy those of one layer."""

import pytest
import torch
from transformers import DynamicCache

from fixtures.allocations import SLOPE, allocations, fitted
from fixtures.decoding import feed
from fixtures.meters import largest_made
from fixtures.oracles.memory import kv_bytes, kv_width, windows
from fixtures.questions import Usage

NEEDS, FULL, HALF = frozenset({"exact", "reorder"}), frozenset({torch.float32}), frozenset({torch.bfloat16})
# None of SDPA's fused kernels on CUDA takes grouped heads in float32: there keys are repeated. On a CPU not in
# bfloat16: what oneDNN needs beside a product depends on the processor and on the count of threads.
STEPS = [
    Usage("step", (), NEEDS, devices=frozenset({"cpu"}), dtypes=FULL),
    Usage("step-cuda", (), NEEDS, devices=frozenset({"cuda"}), dtypes=HALF),
]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("usage", STEPS, ids=str)
@pytest.mark.applies(architecture=("llama", "gpt_bigcode"), tier=("standard",), real=(False,))
def test_step_needs_what_it_adds(case, kv_cache, dtype, usage, device, model, make_ids, judge):
    """MEM-7: a cached step MUST keep its token's keys and values, and need beside them one layer's keys at most."""
    config, longest = model.config, 500

    def slots(tokens):
        return [kv_cache.slots(tokens, longest, window) for window in windows(config)]

    def step(batch, length):
        ids = make_ids(batch, length + 1)
        with allocations(device) as since:
            cache = kv_cache.make(config, batch, longest)
            feed(model, cache, ids[:, :length], 0)
            since.begin()
            feed(model, cache, ids[:, length:], length)
        held, then = (
            kv_bytes(config, batch=batch, slots=slots(n), itemsize=dtype.itemsize) for n in (length, length + 1)
        )
        judge.exactly("bytes that a step keeps", since.kept, then - held, unit="bytes")
        return since.peak

    step(1, 8)
    token, _, _ = fitted(step, (4, 8), (320, 480))
    keys = kv_width(config) // 2 * dtype.itemsize
    predicted = keys * (slots(480)[0] - slots(320)[0]) / 160

    judge.between("bytes for each token of context", token, predicted - SLOPE * keys, predicted + SLOPE * keys, "bytes")


HALVES = [torch.bfloat16, torch.float16]


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
@pytest.mark.applies(architecture=("llama", "mistral"), tier=("standard",), real=(False,))
def test_step_in_half_precision_makes_nothing_larger_than_keys(case, dtype, device, model, make_ids, judge):
    """MEM-7: a cached step MUST keep its token's keys and values, and need beside them one layer's keys at most."""
    cache, length = DynamicCache(), 480
    ids = make_ids(1, length + 1)
    feed(model, cache, ids[:, :length], 0)

    size, made = largest_made(lambda: feed(model, cache, ids[:, length:], length))

    keys = kv_width(model.config) // 2 * dtype.itemsize * (length + 1)
    judge.between("bytes of the largest tensor that was made", size, 0, keys, "bytes", place=made)
