"""What a scheme does not round is what was released."""

import pytest
import torch

from fixtures.engagement import kept, released

# The architectures of tier full are tried under attention so far.
pytestmark = pytest.mark.applies(tier=("standard",))


@torch.no_grad()
def test_what_a_scheme_keeps_is_what_was_released(case, quantizer, device, bench, judge):
    """QUANT-6: embeddings, norms, biases and a head that is kept MUST be the released ones, in the model's dtype."""
    full = bench.shelf.model(case, torch.float32, device)
    candidate = bench.shelf.quantized(case, quantizer, device)

    wanted, found = released(full, quantizer), kept(candidate, quantizer)

    judge.exactly("tensors that are kept", " ".join(sorted(found)), " ".join(sorted(wanted)))
    dtypes = {name: str(found[name].dtype) for name in wanted if name in found and found[name].dtype != quantizer.dtype}
    judge.exactly("tensors of another dtype", str(dtypes), "{}")
    changed = [name for name in wanted if name in found and not torch.equal(found[name], wanted[name])]
    judge.exactly("tensors that differ from the released ones", " ".join(changed), "")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=["bfloat16"])
@pytest.mark.applies(name=("bnb-int8", "bnb-nf4", "llama-gqa"))
def test_what_is_kept_has_the_dtype_of_its_release(case, quantizer, dtype, device, model, tmp_path, judge):
    """QUANT-6: embeddings, norms, biases and a head that is kept MUST be the released ones, in the model's dtype."""
    model.save_pretrained(tmp_path)
    candidate = quantizer.load(tmp_path, device, "auto")

    found = {name: str(tensor.dtype) for name, tensor in kept(candidate, quantizer).items() if tensor.dtype != dtype}

    judge.exactly("tensors of another dtype", str(found), "{}")
