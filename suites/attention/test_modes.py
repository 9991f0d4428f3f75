"""The modes in which torch and transformers run a model change nothing of its logits."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from fixtures.decoding import after_padding
from fixtures.questions import Padding

SMALL = pytest.mark.applies(real=(False,), saved=(True,), tier=("standard",))


def _loaded(case, dtype, device):
    """As a user has it who calls nothing beside `from_pretrained`, which promises evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(case.checkpoint(), dtype=dtype).to(device)


def _checkpointing(model):
    """As fine-tuning leaves a model; by the newer of its names where there is one."""
    newer = "activation_checkpointing_enable"
    getattr(model, newer if hasattr(model, newer) else "gradient_checkpointing_enable")()


# What is done to a model, and what it is then run in.
MODES = {
    "as-loaded": (lambda model: None, torch.no_grad),
    "with-gradients": (lambda model: None, torch.enable_grad),
    "inference": (lambda model: None, torch.inference_mode),
    "checkpointing": (_checkpointing, torch.no_grad),
}


@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("mode", MODES)
@SMALL
def test_rows_are_the_same_in_every_mode(case, mode, dtype, device, make_ids, truth, judge):
    """ATTN-16: a row of a padded batch MUST have the logits that it has alone, as a prompt and one cached step on."""
    model, (prepare, run) = _loaded(case, dtype, device), MODES[mode]
    long, short = make_ids(batch=2, length=41)
    rows = [long, short[:24]]

    prepare(model)
    with run():
        candidates = after_padding(model, rows, Padding("left"))

    _judge_rows(judge, truth, model, rows, candidates, dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("mask", [torch.bool, torch.int32, torch.float32], ids=["bools", "ints", "floats"])
@SMALL
def test_a_mask_of_any_dtype_hides_padding(case, mask, dtype, device, model, make_ids, truth, judge):
    """ATTN-16: a row of a padded batch MUST have the logits that it has alone, as a prompt and one cached step on."""
    long, short = make_ids(batch=2, length=41)
    rows = [long, short[:24]]

    candidates = after_padding(model, rows, Padding("left"), mask)

    _judge_rows(judge, truth, model, rows, candidates, dtype)


def _judge_rows(judge, truth, model, rows, candidates, dtype):
    for name, row, candidate in zip(("long", "short"), rows, candidates, strict=True):
        golden, reference = (truth(model, row[None], precision)[0] for precision in (torch.float64, dtype))
        judge(candidate.detach().clone(), reference, golden, what=f"{name} row")


# Far along, where an angle in less than float32 is off by whole turns.
LENGTH, FAR = 65, 3000


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=["bfloat16"])
@pytest.mark.applies(real=(False,), saved=(True,), tier=("standard",), positions=("rope",))
def test_autocast_is_as_accurate_as_its_dtype(case, dtype, device, make_ids, decoded, judge):
    """ATTN-2: a model's logits under a backend MUST be as close to float64 as plain eager attention's in that dtype."""
    model, ids = _loaded(case, torch.float32, device), make_ids(batch=2, length=LENGTH)
    at = torch.arange(FAR, FAR + LENGTH, device=device).expand_as(ids)

    with torch.autocast(device.type, dtype):
        candidate = model(ids, attention_mask=torch.ones_like(ids), position_ids=at, use_cache=False).logits

    golden, reference = (decoded(model, ids, kind, at) for kind in (torch.float64, dtype))
    judge(candidate.to(dtype), reference, golden)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@SMALL
def test_weights_that_are_changed_in_place_are_seen(case, dtype, device, make_ids, draw, decoded, judge):
    """ATTN-2: a model's logits under a backend MUST be as close to float64 as plain eager attention's in that dtype."""
    model, ids = _loaded(case, dtype, device), make_ids(batch=2, length=LENGTH)
    model(ids, use_cache=False)

    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    for weight in matrices:  # as an adapter is merged
        weight.add_(torch.randn(weight.shape[1], generator=draw).to(device, dtype) / 8)
    candidate = model(ids, use_cache=False).logits

    golden, reference = (decoded(model, ids, kind) for kind in (torch.float64, dtype))
    judge(candidate, reference, golden)
