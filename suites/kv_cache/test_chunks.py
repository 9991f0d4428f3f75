"""A prompt that goes in by pieces is the same prompt."""

import pytest
import torch

from fixtures.decoding import decode, padded_left
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


# How many tokens go in at once, and how long the prompts are: the last chunk is a single token, as large as the others,
# and smaller; the shorter one of two is padded on the left.
PROMPTS = {"size-7": (7, (78,)), "size-64": (64, (128,)), "padded-7": (7, (75, 40))}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize(("size", "lengths"), PROMPTS.values(), ids=PROMPTS)
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_generate_takes_the_prompt_in_chunks(
    case, kv_cache, dtype, size, lengths, device, model, make_ids, truth, judge
):
    """KV-3: a prompt fed in chunks, split anywhere, MUST have the logits that it has when fed whole."""
    count, width = 6, max(lengths)
    prompts = [row[:length] for row, length in zip(make_ids(len(lengths), width), lengths, strict=True)]
    ids, real = padded_left(prompts)
    how = using(model, kv_cache, width + count, rows=len(prompts))

    answers = generated(model, ids, count, real, prefill_chunk_size=size, **how)

    for prompt, answer in zip(prompts, answers, strict=True):
        whole = torch.cat([prompt, answer])[None]
        golden, reference = (truth(model, whole, d)[0, len(prompt) - 1 : -1] for d in (torch.float64, dtype))
        judge.ranked_first(answer.tolist(), reference, golden, what=f"{len(prompt)} in chunks of {size}")
