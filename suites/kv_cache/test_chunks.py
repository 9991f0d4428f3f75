"""A prompt that goes in by pieces is the same prompt."""

import pytest
import torch

from fixtures.decoding import decode
from fixtures.generation import generated, using
from fixtures.inputs import pieces
from fixtures.questions import Usage

LENGTH = 136
LOGIC, HALVES = frozenset({torch.float32}), frozenset({torch.float32, torch.bfloat16})
SMALL = pytest.mark.applies(real=(False,))
CORE = pytest.mark.applies(tier=("standard",), real=(False,))
CHUNKS = [
    pytest.param(Usage("chunks-1", (1,) * 48, dtypes=LOGIC), marks=CORE),
    pytest.param(Usage("chunks-7", (7,) * 19 + (3,), dtypes=HALVES), marks=SMALL),
    pytest.param(Usage("chunks-64", (64, 64, 8)), marks=CORE),
    pytest.param(Usage("whole", (LENGTH,), dtypes=LOGIC), marks=CORE),
    pytest.param(Usage("half", (20, 19)), marks=CORE),
    pytest.param(Usage("half-served", (20, 19)), marks=pytest.mark.applies(real=(True,))),
]


@torch.no_grad()
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_prefill_in_chunks_is_as_accurate_as_whole(
    case, kv_cache, dtype, chunks, device, model, make_ids, truth, judge
):
    """KV-3: a prompt fed in chunks, split anywhere, MUST have the logits that it has when fed whole."""
    ids = make_ids(batch=2, length=chunks.length)
    cache = kv_cache.make(model.config, 2, chunks.length)

    logits = decode(model, cache, ids, chunks.widths)

    judge(logits, truth(model, ids, dtype), truth(model, ids, torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_any_split_is_as_accurate_as_whole(case, kv_cache, dtype, device, model, make_ids, draw, truth, judge):
    """KV-3: a prompt fed in chunks, split anywhere, MUST have the logits that it has when fed whole."""
    ids = make_ids(batch=2, length=LENGTH)
    cache = kv_cache.make(model.config, 2, LENGTH)

    logits = decode(model, cache, ids, pieces(LENGTH, 9, draw))

    judge(logits, truth(model, ids, dtype), truth(model, ids, torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("size", [7, 64], ids=["size-7", "size-64"])
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_generate_takes_the_prompt_in_chunks(case, kv_cache, dtype, size, device, model, make_ids, truth, judge):
    """KV-3: a prompt fed in chunks, split anywhere, MUST have the logits that it has when fed whole."""
    prompt, count = make_ids(batch=1, length=75), 6

    tokens = generated(model, prompt, count, prefill_chunk_size=size, **using(model, kv_cache, 75 + count))

    whole = torch.cat([prompt, tokens], 1)
    golden, reference = (truth(model, whole, d)[0, 74:-1] for d in (torch.float64, dtype))
    judge.ranked_first(tokens[0].tolist(), reference, golden, what=f"chunks of {size}")
