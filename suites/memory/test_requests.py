"""Nothing leaks: what requests took is given back, however they ended."""

import gc

import pytest
import torch

from fixtures import heap
from fixtures.allocations import allocations, survivors
from fixtures.models import from_folder
from fixtures.questions import Traffic
from fixtures.requests import COUNT, PROMPT, REQUESTS

MANY = 4
# The first requests fill caches and free lists of Python's; of six after them the least is what each leaves: another
# each time, and on healthy stacks 1,812 bytes at most, of 160 with transformers 4.57 to 5.24. 2026-11-29.
FIRST, THEN, HEALTHY = 8, 6, 1812
POINTER = 8
LLAMA = pytest.mark.applies(architecture=("llama",))  # what is told beside tokens is no matter of the architecture
MARKS = {
    # transformers 5.17 drafts on no cache whose window is full: KV-15 is about what a cache offers, and MEM-9 is not.
    "drafted": pytest.mark.applies(architecture=("llama", "bloom", "gpt_bigcode")),
    "stopped": LLAMA,
    "described": LLAMA,
    "streamed": LLAMA,
}
# Weights of attention are no other's than hidden states; what a thread takes, the profiler of another does not see.
HERE = [name for name in REQUESTS if name not in {"attended", "streamed"}]
ENDINGS = pytest.mark.parametrize("ending", [pytest.param(name, marks=MARKS.get(name, ())) for name in HERE])
FIRSTS = [pytest.param(name, marks=MARKS.get(name, ())) for name in ("plain", "static", "described", "streamed")]
# Of two models, or with words and many tensors, of which Python's own stock is larger.
STOCKED = {"drafted", "stopped", "described"}


@ENDINGS
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(tier=("standard",), real=(False,))
def test_requests_give_back_what_they_took(case, dtype, ending, device, model, make_ids, judge):
    """MEM-9: requests that ended, were cancelled or failed MUST leave no byte behind, and peaks MUST NOT creep."""
    ids = make_ids(2, PROMPT)
    # Each is a token shorter than the one before: what is kept for every length that was ever asked stays, too.
    prompts = [ids[:, fewer:] for fewer in range(MANY)]
    one, many = (_served(model, REQUESTS[ending], prompts[:count], device) for count in (1, MANY))

    judge.exactly(f"bytes that stay after {MANY} requests", many.kept, 0, unit="bytes")
    judge.exactly(f"peak of {MANY} requests", many.peak, one.peak, unit="bytes")


@torch.no_grad()
@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(tier=("standard",), real=(False,), saved=(True,))
def test_first_request_leaves_nothing(case, dtype, first, device, make_ids, judge):
    """MEM-9: requests that ended, were cancelled or failed MUST leave no byte behind, and peaks MUST NOT creep."""
    model, ids = from_folder(case.checkpoint(), dtype, device), make_ids(2, PROMPT)

    with survivors() as added:
        REQUESTS[first](model, ids)
        gc.collect()
        left = added()

    judge.exactly("bytes that stay after the first request", left, 0, unit="bytes")


@torch.no_grad()
@pytest.mark.parametrize("traffic", [Traffic("together", lengths=(33, 5), count=COUNT)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(tier=("standard",), real=(False,), saved=(True,), architecture=("llama",))
@pytest.mark.optional("paged attention")
def test_first_batch_leaves_nothing(case, attention, traffic, dtype, device, make_ids, judge):
    """MEM-9: requests that ended, were cancelled or failed MUST leave no byte behind, and peaks MUST NOT creep."""
    model, texts = from_folder(case.checkpoint(), dtype, device), make_ids(2, max(traffic.lengths)).tolist()
    prompts = [text[:length] for text, length in zip(texts, traffic.lengths, strict=True)]

    with survivors() as added:
        attention.answer(model, prompts, traffic.count)
        gc.collect()
        left = added()

    judge.exactly("bytes that stay after the first batch", left, 0, unit="bytes")


@pytest.mark.parametrize("ending", [ending for ending in HERE if ending not in STOCKED])
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(tier=("standard",), real=(False,), architecture=("llama",))
def test_requests_leave_no_objects(case, dtype, ending, device, model, make_ids, judge):
    """MEM-9: requests that ended, were cancelled or failed MUST leave no byte behind, and peaks MUST NOT creep."""
    ids = make_ids(8, 4 * PROMPT)  # what is kept of a request grows with it, and Python's own stock does not

    grown = heap.growth(lambda: REQUESTS[ending](model, ids), FIRST + THEN)[FIRST:]

    most = ids.numel() * POINTER // 2  # half of what a list of its tokens takes
    judge.no_more(
        f"objects that each of {THEN} requests left", max(0, min(grown)), most, "bytes", healthy=HEALTHY / most
    )


@pytest.mark.parametrize("ending", ["plain", "failed"])
@pytest.mark.applies(tier=("standard",), real=(False,), architecture=("llama",))
def test_requests_on_quantized_weights_give_back_what_they_took(
    case, quantizer, ending, bench, device, make_ids, judge
):
    """MEM-9: requests that ended, were cancelled or failed MUST leave no byte behind, and peaks MUST NOT creep."""
    model = bench.shelf.quantized(case, quantizer, device)
    ids = make_ids(2, PROMPT)
    one, many = (_served(model, REQUESTS[ending], [ids] * count, device) for count in (1, MANY))

    judge.exactly(f"bytes that stay after {MANY} requests", many.kept, 0, unit="bytes")
    judge.exactly(f"peak of {MANY} requests", many.peak, one.peak, unit="bytes")


@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(tier=("standard",), real=(False,))
def test_requests_keep_no_graph(case, dtype, device, model, make_ids, judge):
    """MEM-10: a request MUST keep no autograd graph: nothing of it requires a gradient, and none costs memory."""
    ids = make_ids(2, PROMPT)
    seen = []
    head = model.get_output_embeddings()
    with head.register_forward_hook(lambda module, args, out: seen.append(out.requires_grad)):
        REQUESTS["plain"](model, ids)

    outside = _served(model, REQUESTS["plain"], [ids], device)
    with torch.no_grad():
        inside = _served(model, REQUESTS["plain"], [ids], device)

    judge.exactly("steps whose logits require a gradient", f"{sum(seen)} of {len(seen)}", f"0 of {COUNT}")
    judge.exactly("peak", outside.peak, inside.peak, unit="bytes", detail="allowed is the peak without gradients")


def _served(model, request, prompts, device):
    """Requests one after the other, once one has been; answers are dropped, and garbage is collected."""
    with allocations(device) as since:
        request(model, prompts[0])
        gc.collect()
        since.begin()
        for ids in prompts:
            request(model, ids)
            gc.collect()
    return since
