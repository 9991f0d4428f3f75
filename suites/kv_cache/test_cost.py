"""What a cached step costs: no more for a long context than attention to it, and nothing for a length that is new."""

import pytest
import torch
from transformers import DynamicCache

from fixtures.decoding import decode
from fixtures.meters import computing, operations, slow_at_first
from fixtures.oracles.memory import attention_operations, weight_operations
from fixtures.questions import Usage

SHORT, LONG = 64, 192


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(real=(False,))
def test_step_costs_attention_and_no_more(case, kv_cache, dtype, device, model, make_ids, judge):
    """KV-17: what a cached step costs MUST grow with the context by attention's own share, and by no more."""
    ids = make_ids(batch=1, length=LONG + 1)

    def step(length):
        cache = kv_cache.make(model.config, 1, LONG + 1)
        decode(model, cache, ids, [length])
        return operations(lambda: decode(model, cache, ids[:, length:], [1], start=length))

    grown = step(LONG) - step(SHORT)
    recomputed = operations(lambda: model(ids, use_cache=False)) - operations(
        lambda: model(ids[:, : SHORT + 1], use_cache=False)
    )

    share = attention_operations(model.config, LONG - SHORT)
    judge.exactly("operations beyond attention's share", max(0, grown - share), 0, detail=f"grown by {grown}")
    judge.exactly("recomputation grows by more", recomputed > grown, True, detail=f"by {recomputed}")


# What angles are made by, and a learned scale: next to nothing beside the weights.
BESIDE = 0.01


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.applies(tier=("standard",), real=(False,))
def test_step_multiplies_with_each_weight_once(case, dtype, device, model, make_ids, judge):
    """KV-17: what a cached step costs MUST grow with the context by attention's own share, and by no more."""
    cache, ids = DynamicCache(), make_ids(batch=1, length=SHORT + 1)
    decode(model, cache, ids, [SHORT])

    found = operations(lambda: decode(model, cache, ids[:, SHORT:], [1], start=SHORT))

    least = weight_operations(model.config)
    most = least + attention_operations(model.config, SHORT + 1)
    judge.between("operations of a step", found, least, most * (1 + BESIDE))


# A kernel that is planned or compiled for each length costs tens of calls at least; that most of these lengths are slow
# the first time and fast the second is no accident.
CALLS, LENGTHS = 8, 9
UNSEEN = [Usage("unseen-lengths", dtypes=frozenset({torch.float32, torch.bfloat16}))]


@torch.no_grad()
@pytest.mark.parametrize("usage", UNSEEN, ids=str)
@pytest.mark.applies(positions=("rope",), tier=("standard",), real=(False,))
def test_length_never_seen_costs_nothing(case, attention, dtype, usage, device, model, make_ids, draw, judge):
    """KV-18: the first prompt and step at a length never seen MUST cost no more than a few at one that was."""
    longest = 500
    ids = make_ids(batch=1, length=longest + 1)
    lengths = (torch.randperm(longest - SHORT, generator=draw)[:LENGTHS] + SHORT).tolist()

    def seconds(length):
        cache = DynamicCache(config=model.config)
        prompt = computing(lambda: decode(model, cache, ids, [length]), device)
        return prompt, computing(lambda: decode(model, cache, ids[:, length:], [1], start=length), device)

    with attention.in_model(model):
        seconds(SHORT - 1)
        times = torch.tensor([[seconds(length), seconds(length)] for length in lengths])

    judge.evidence["curve"] = {
        "figure": f"a cached step of {case.name}, {str(dtype).removeprefix('torch.')}",
        "line": attention.name,
        "unit": "ms",
        "points": sorted(
            [length, round(1000 * step, 3)] for length, (_, (_, step)) in zip(lengths, times.tolist(), strict=True)
        ),
    }
    for what, count in zip(("prompts", "steps"), slow_at_first(times, CALLS), strict=True):
        judge.evidence[f"lengths whose {what} were slow"] = count
        most = count > LENGTHS // 2
        judge.exactly(f"most of {LENGTHS} lengths cost {CALLS} {what} the first time", most, False)
