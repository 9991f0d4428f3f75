"""What a prompt needs while it runs: the peak as a slope and an intercept, and logits where they were asked for."""

import pytest
import torch

from fixtures.allocations import ONCE, SLOPE, allocations, fitted, measured
from fixtures.generation import generated
from fixtures.meters import storage_bytes
from fixtures.oracles.memory import GATED, logits_bytes, prefill_blocks
from fixtures.questions import Sweep

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
UNWINDOWED = (frozenset(), frozenset({"gqa"}))

# On a GPU long enough that what comes once, such as a workspace, is small beside it; and not in float32, in which none
# of SDPA's fused kernels there takes grouped heads. On a CPU not in bfloat16: what oneDNN needs beside a product
# depends on the processor and on the count of threads.
CPU, GPU = frozenset({"cpu"}), frozenset({"cuda"})
SWEEPS = [
    Sweep("short", (1, 2), (128, 256, 384), CPU, frozenset({torch.float32})),
    Sweep("long", (1, 4), (1024, 2048, 3072), GPU, frozenset({torch.bfloat16})),
]


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
@pytest.mark.applies(architecture=sorted(GATED), needs=UNWINDOWED, tier=("standard",), real=(False,))
def test_peak_of_a_prompt_grows_as_predicted(case, dtype, sweep, device, model, make_ids, judge):
    """MEM-6: each token more of a prompt MUST add to the peak its keys, values and one layer's temporaries, no more."""
    shared = {"positions", "cosines and sines"}
    blocks = prefill_blocks(model.config, dtype.itemsize)

    def peak(batch, length):
        ids = make_ids(batch, length)
        real = torch.ones_like(ids)  # a mask that hides nothing is no table
        return measured(lambda: model(ids, attention_mask=real, use_cache=True, logits_to_keep=1), device).peak

    token, position, once = fitted(peak, sweep.batches, sweep.lengths)

    judge.evidence["bytes for each token"] = blocks
    for what, found, predicted in (
        ("bytes for each token", token, sum(size for name, size in blocks.items() if name not in shared)),
        ("bytes for each position", token + position, sum(blocks.values())),
    ):
        judge.between(what, found, predicted * (1 - SLOPE), predicted * (1 + SLOPE), unit="bytes")
    judge.between("bytes that come once", once, -ONCE, ONCE, unit="bytes")


@torch.no_grad()
@DTYPES
@pytest.mark.applies(tier=("standard",), real=(False,))
def test_generate_wants_the_logits_of_one_position(case, dtype, device, model, make_ids, judge):
    """MEM-12: `generate` MUST compute logits for the last position of a prompt alone, and once a step."""
    seen = []
    head = model.get_output_embeddings()

    with head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[-2])):
        generated(model, make_ids(2, 40), 3)

    judge.exactly("positions that have logits, of 40 tokens and at each step", str(seen), "[1, 1, 1]")


@torch.no_grad()
@DTYPES
@pytest.mark.applies(tier=("standard",), real=(False,))
def test_generate_wants_the_logits_of_one_position_a_chunk(case, dtype, device, model, make_ids, judge):
    """MEM-12: `generate` MUST compute logits for the last position of a prompt alone, and once a step."""
    seen, count = [], 3
    head = model.get_output_embeddings()

    with head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[-2])):
        generated(model, make_ids(2, 40), count, prefill_chunk_size=16)

    # transformers 4.57 leaves the last token of a prompt to the first step, so that there is a call more.
    judge.exactly("most positions that have logits at once, of chunks of 16 tokens", max(seen), 1)
    judge.exactly("the prompt came in chunks", len(seen) > count, True)


# How an answer is found, and how many positions at once need logits for it: each token that is drafted, and one more.
WAYS = {"beams": ({"num_beams": 3}, 1), "looked-up": ({"prompt_lookup_num_tokens": 3}, 4)}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize(("way", "most"), WAYS.values(), ids=WAYS)
@pytest.mark.applies(tier=("standard",), real=(False,))
def test_every_way_wants_the_logits_of_few_positions(case, dtype, way, most, device, model, make_ids, judge):
    """MEM-12: `generate` MUST compute logits for the last position of a prompt alone, and once a step."""
    seen = []
    head = model.get_output_embeddings()

    with head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[-2])):
        generated(model, make_ids(1, 40), 3, **way)

    judge.between("positions that have logits at once, of 40 tokens", max(seen), 1, most)


@torch.no_grad()
@DTYPES
@pytest.mark.applies(tier=("standard",), real=(False,))
def test_logits_of_a_whole_prompt_take_their_own_bytes(case, dtype, device, model, make_ids, judge):
    """MEM-5: logits MUST take their own bytes in the model's dtype, with no copy in another on their way."""
    ids = make_ids(2, 128)
    predicted = logits_bytes(model.config, 2, 128, dtype.itemsize)
    model(ids, use_cache=False)

    head = model.get_output_embeddings()
    with allocations(device) as since, head.register_forward_pre_hook(lambda module, args: since.begin()):
        logits = model(ids, use_cache=False).logits

    judge.exactly("dtype of the logits", str(logits.dtype), str(dtype))
    judge.exactly("bytes of the logits", storage_bytes([logits]), predicted, unit="bytes")
    # A second copy, in whatever dtype, takes half of it at least; what a product needs inside is less.
    half = predicted / 2
    judge.between("bytes beside the logits, from the head on", since.peak - predicted, -half, half, unit="bytes")
