"""What a load leaves behind, needs on its way, and counts."""

import copy
import gc

import pytest
import torch

from fixtures import heap
from fixtures.allocations import allocations, survivors
from fixtures.oracles.memory import parameter_count, skeleton, weight_blocks


@pytest.fixture
def one_thread(monkeypatch):
    """transformers 5 loads in threads, of which the profiler of a CPU is not told."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.applies(tier=("standard",), real=(False,))
def test_load_leaves_the_model_and_nothing_else(case, dtype, device, one_thread, judge):
    """MEM-4: a load MUST leave the model's bytes behind, wherever one looks, and need no second copy on its way."""
    model, left, way = _loaded(lambda: case.load(dtype, device), device)

    _judged(judge, model.config, weight_blocks(model.config, dtype), left, way, beside=2)


@torch.no_grad()
@pytest.mark.applies(packed=(True,), real=(False,), architecture=("llama",))
def test_quantized_load_leaves_the_model_and_nothing_else(case, quantizer, device, one_thread, judge):
    """MEM-4: a load MUST leave the model's bytes behind, wherever one looks, and need no second copy on its way."""
    model, left, way = _loaded(lambda: quantizer.load(case.checkpoint(), device), device)

    how = (quantizer.dtype, quantizer.storage or quantizer.scheme, quantizer.keeps)
    # bitsandbytes compares every weight of a layer with its codes.
    _judged(judge, model.config, weight_blocks(model.config, *how), left, way, beside=8)


@torch.no_grad()
@pytest.mark.applies(counts=(True,), real=(False,))
def test_parameters_are_counted_as_the_architecture_has_them(case, quantizer, bench, device, judge):
    """MEM-3: the parameters that a model counts MUST be its architecture's, in any dtype or scheme, tied ones once."""
    model = bench.shelf.quantized(case, quantizer, device)

    judge.exactly("num_parameters()", model.num_parameters(), parameter_count(model.config))


def _extended(model):
    """With tokens more, as a chat format needs them."""
    model.resize_token_embeddings(model.config.vocab_size + 24)
    return model


# What is done to a loaded model, of which a head that is tied stays so.
CHANGES = {
    "cast": lambda model: model.to(torch.bfloat16),
    "extended": _extended,
    "copied": copy.deepcopy,
}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.applies(tier=("standard",), real=(False,))
def test_parameters_are_counted_after_a_change(case, dtype, change, device, judge):
    """MEM-3: the parameters that a model counts MUST be its architecture's, in any dtype or scheme, tied ones once."""
    model = CHANGES[change](case.load(dtype, device))

    judge.exactly("num_parameters()", model.num_parameters(), parameter_count(model.config))


# Bytes in Python's heap after a load at most, of 31 with transformers 4.57 to 5.24; another each time. 2026-11-29.
HEALTHY = 25454


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(tier=("standard",), real=(False,), architecture=("llama",))
def test_loads_leave_no_file_in_memory(case, dtype, device, judge):
    """MEM-4: a load MUST leave the model's bytes behind, wherever one looks, and need no second copy on its way."""
    grown = heap.growth(lambda: case.load(dtype, device), 3)

    most = sum(weight_blocks(case.config(), dtype).values()) // 4
    judge.no_more(
        "bytes that each load left in Python's heap", max(0, min(grown)), most, "bytes", healthy=HEALTHY / most
    )


def _loaded(load, device):
    """The model of a second load, the bytes that are alive since, and the most that was allocated on the way."""
    load()
    with survivors() as added, allocations(device) as since:
        model = load()
        gc.collect()  # here, where nothing older need be looked through
        left = added()
    return model, left, since.peak


def _judged(judge, config, blocks, left, way, beside):
    """The file's float32 tensors may be held until the last is converted, and beside them so many of the largest."""
    whole = [tensor.nbytes for tensor in skeleton(config).parameters()]
    most = sum(blocks.values()) + sum(whole) + beside * max(whole)
    judge.exactly("bytes alive since the load", left, sum(blocks.values()), unit="bytes")
    judge.no_more("bytes that the load needed", way, most, unit="bytes")
