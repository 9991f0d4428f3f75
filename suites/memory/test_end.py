"""What a model took is given back when nobody holds it any more."""

import gc

import pytest
import torch

from fixtures import heap
from fixtures.allocations import remains
from fixtures.models import from_folder
from fixtures.requests import PROMPT, REQUESTS

LLAMA = pytest.mark.applies(architecture=("llama",))
ASKED = [pytest.param(name, marks=[] if name == "plain" else LLAMA) for name in REQUESTS]


@torch.no_grad()
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(tier=("standard",), real=(False,), saved=(True,))
def test_a_model_ends(case, dtype, asked, device, make_ids, judge):
    """MEM-13: a model that nobody holds any more MUST leave nothing behind, whatever it was asked before."""
    ids = make_ids(2, PROMPT)

    _judge(judge, lambda: from_folder(case.checkpoint(), dtype, device), lambda model: REQUESTS[asked](model, ids))


@torch.no_grad()
@pytest.mark.parametrize("asked", ["plain"])
@pytest.mark.applies(tier=("standard",), real=(False,), architecture=("llama",))
def test_a_quantized_model_ends(case, quantizer, asked, device, make_ids, judge):
    """MEM-13: a model that nobody holds any more MUST leave nothing behind, whatever it was asked before."""
    ids = make_ids(2, PROMPT)

    _judge(judge, lambda: quantizer.load(case.checkpoint(), device), lambda model: REQUESTS[asked](model, ids))


def _judge(judge, load, ask):
    with heap.set_aside():
        model = load()
        ask(model)
        left = remains(model)  # with what a first request lays out anew
        judge.evidence["modules and bytes"] = list(left())
        del model
        gc.collect()
        modules, size = left()
    judge.exactly("modules that stay", modules, 0)
    judge.exactly("bytes of the model that stay", size, 0, unit="bytes")
