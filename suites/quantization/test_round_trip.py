"""A quantized model is the same after it was saved and loaded, and a layer after it was moved."""

import copy

import pytest
import torch

from fixtures import layers
from fixtures.bitsandbytes import NAMES
from fixtures.probes import first_difference

# The architectures of tier full are tried under attention so far.
pytestmark = pytest.mark.applies(tier=("standard",))


@torch.no_grad()
@pytest.mark.applies(saves=(True,), real=(False,))
@pytest.mark.parametrize(("used", "file"), [(False, "100KB"), (True, "1GB")], ids=["unused", "used"])
def test_a_model_comes_back_from_its_files_as_it_was(case, quantizer, used, file, device, make_ids, tmp_path, judge):
    """QUANT-8: saved and loaded, or moved and moved back, what is quantized MUST answer with the bits of before."""
    ids = make_ids(batch=2, length=24)
    model = quantizer.load(case.checkpoint(), device)
    asked = [model(ids, use_cache=False).logits for _ in range(used)]

    model.save_pretrained(tmp_path, max_shard_size=file)  # of several files, what belongs together is in two
    before = [*asked, model(ids, use_cache=False).logits][0]
    after = layers.loaded(tmp_path, quantizer, device)(ids, use_cache=False).logits

    wrong, place = first_difference(after, before)
    judge.exactly("logits that differ", wrong, 0, place=place)


@torch.no_grad()
@pytest.mark.applies(moves=(True,), layers=(True,))
@pytest.mark.parametrize("layer", [layers.PLAIN, layers.MOVED], ids=str)
def test_a_layer_is_the_same_wherever_it_was(layer, quantizer, device, draw, judge):
    """QUANT-8: saved and loaded, or moved and moved back, what is quantized MUST answer with the bits of before."""
    weight, bias = layers.weights(layer, quantizer, draw)
    x = layers.activations(layer, 33, draw).to(device, quantizer.dtype)
    stayed, moved = (quantizer.layer(weight, bias, device) for _ in range(2))

    moved = moved.to("cpu").to(device)

    judge.exactly("weights that differ", first_difference(quantizer.dense(moved), quantizer.dense(stayed))[0], 0)
    judge.exactly("outputs that differ", first_difference(moved(x), stayed(x))[0], 0)
    judge.exactly("device", str(moved(x).device), str(x.device))


@torch.no_grad()
@pytest.mark.parametrize("layer", [layers.MOVED], ids=str)
@pytest.mark.applies(name=sorted(NAMES))  # a layer of quanto's cannot be copied
def test_a_copy_of_a_layer_is_a_layer_of_its_own(layer, quantizer, device, draw, judge):
    """QUANT-8: saved and loaded, or moved and moved back, what is quantized MUST answer with the bits of before."""
    weight, bias = layers.weights(layer, quantizer, draw)
    x = layers.activations(layer, 33, draw).to(device, quantizer.dtype)
    module = quantizer.layer(weight, bias, device)

    copied = copy.deepcopy(module)
    before = module(x)
    after = copied(x)

    judge.exactly("outputs that differ", first_difference(after, before)[0], 0)
    judge.exactly("outputs of the first that differ since", first_difference(module(x), before)[0], 0)
