"""What a cached step needs: its token's keys and values, and room to copy those of one layer."""

from itertools import count

import pytest
import torch
from transformers import DynamicCache

from fixtures.allocations import SLOPE, allocations, fitted
from fixtures.decoding import feed
from fixtures.generation import generated
from fixtures.meters import largest_made
from fixtures.oracles.memory import kv_bytes, kv_width, windows
from fixtures.questions import Sweep, Usage

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
    judge.exactly("bytes that a tensor takes beyond a layer's keys", max(0, size - keys), 0, "bytes", place=made)


# On a CPU, where a byte is a byte: what is small comes in blocks on a GPU.
ANSWERS = [Sweep("answers", (2,), (320, 480), frozenset({"cpu"}), FULL)]
BEGIN, SHORT, LONG = 4, 10, 42


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("sweep", ANSWERS, ids=str)
@pytest.mark.applies(architecture=("llama",), tier=("standard",), real=(False,))
def test_steps_of_generate_need_what_they_add(case, dtype, sweep, device, model, make_ids, judge):
    """MEM-7: a cached step MUST keep its token's keys and values, and need beside them one layer's keys at most."""
    (batch,), (short, long) = sweep.batches, sweep.lengths

    def peak(length, answered):
        """From the step `BEGIN` on, to the end of an answer."""
        ids, calls = make_ids(batch, length), count()
        with allocations(device) as since:

            def begin(module, given):
                if next(calls) == BEGIN:
                    since.begin()

            with model.register_forward_pre_hook(begin):
                generated(model, ids, answered)
        return since.peak

    peak(8, SHORT)
    first = peak(short, SHORT)
    of_context = (peak(long, SHORT) - first) / (long - short) / batch
    of_answer = (peak(short, LONG) - first) / (LONG - SHORT) / batch

    keys = kv_width(model.config) // 2 * dtype.itemsize
    kept = kv_bytes(model.config, batch=1, slots=[1 for _ in windows(model.config)], itemsize=dtype.itemsize)
    # Tokens, the mask and positions are lengthened at each step, too: less than a layer's values.
    judge.no_more("bytes for each token of context", of_context, 2 * keys, unit="bytes")
    judge.between("bytes for each token answered", of_answer, kept, kept + 2 * keys, unit="bytes")
