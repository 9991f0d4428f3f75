"""The weights that are served are the ones that were released."""

import pytest
import torch

from fixtures import release
from fixtures.served import NO_MODEL


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.applies(real=(True,))
def test_served_weights_are_the_released_ones(case, dtype, device, model, bench, judge):
    """WEIGHTS-1: every tensor in memory MUST equal the released file's, bit for bit after the declared conversion."""
    assert bench.served.release is not None, NO_MODEL
    state = model.state_dict()
    released, different = set(), []
    for name, value in release.tensors(bench.served.release.path):
        held = state.get(name)
        released.add(name)
        if held is None or not release.same_bits(held.cpu(), value.to(held.dtype)):
            different.append(name)

    tied = {name for name in state if name not in released and release.is_tied(model, name)}
    judge.exactly("tensors that differ", " ".join(different) or "none", "none")
    judge.exactly("tensors never released", " ".join(sorted(set(state) - released - tied)) or "none", "none")
    judge.exactly("dtypes held", " ".join(sorted({str(t.dtype) for t in state.values()})), str(dtype))
    judge.evidence["tensors"] = len(released)
