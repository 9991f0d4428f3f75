"""Where frequencies depend on a text's length, it is this text's length that decides."""

import pytest
import torch

from fixtures.history import AROUND, PROMPTS, answer_across, lengths
from fixtures.materialise import from_checkpoint
from fixtures.positions import TRAINED


@torch.no_grad()
@pytest.mark.parametrize("before", PROMPTS)
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(kind=("rope",), modelled=(True,), by_length=(True,))
def test_what_was_asked_before_decides_nothing(encoding, before, dtype, device, saved, decoded, some_ids, judge):
    """POS-6: frequencies that depend on a text's length MUST be this text's, whatever was asked before or cached."""
    model = from_checkpoint(saved(encoding), dtype, device)
    first, second = (some_ids(batch=1, length=length) for length in lengths(before))

    model(first, use_cache=False)
    candidate = model(second, use_cache=False).logits

    judge(candidate, decoded(model, second, dtype), decoded(model, second, torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("before", ["cached"])
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(kind=("rope",), modelled=(True,), by_length=(True,))
def test_an_answer_beyond_the_trained_length_sees_its_prompt_anew(
    encoding, before, dtype, device, saved, decoded, some_ids, judge
):
    """POS-6: frequencies that depend on a text's length MUST be this text's, whatever was asked before or cached."""
    model = from_checkpoint(saved(encoding), dtype, device)

    text, candidate = answer_across(model, some_ids(batch=1, length=TRAINED - AROUND))

    ends = range(TRAINED - AROUND, text.shape[1])
    reference, golden = (
        torch.cat([decoded(model, text[:, :end], precision)[:, -1:] for end in ends], 1)
        for precision in (dtype, torch.float64)
    )
    judge(candidate, reference, golden)
