"""A quantized layer multiplies with the weights that it holds, whatever kernel takes the call."""

import pytest
import torch

from fixtures import layers
from fixtures.oracles.rounding import SCHEMES
from fixtures.rounded import formed_in

pytestmark = pytest.mark.applies(layers=(True,))


@torch.no_grad()
@pytest.mark.parametrize(("layer", "tokens"), layers.CALLS, ids=str)
def test_products_are_those_of_the_dequantized_weights(layer, tokens, quantizer, device, draw, judge):
    """QUANT-4: a quantized layer's output MUST be as close to float64 as plain arithmetic on its own weights is."""
    weight, bias = layers.weights(layer, quantizer, draw)
    x = layers.activations(layer, tokens, draw).to(device, quantizer.dtype)
    module = quantizer.layer(weight, bias, device)
    dense, multiply = quantizer.dense(module), SCHEMES[quantizer.scheme].multiply
    formed = quantizer.formed(device)
    added = torch.zeros(layer.rows) if bias is None else bias

    # Exact, so that a feature of small weights counts as much as one of large ones.
    even = layers.magnitudes(dense)

    candidate = module(layers.laid_out(x)).reshape(1, tokens, -1).to(formed)
    reference = multiply(x.to(formed), dense.to(formed)) + added.to(device, formed)
    golden = multiply(x.double(), dense.double()) + added.to(device).double()

    judge(candidate / even.to(formed), reference / even.to(formed), golden / even)


@torch.no_grad()
@pytest.mark.applies(dense=(True,))
@pytest.mark.parametrize("layer", [layers.PLAIN], ids=str)
@pytest.mark.parametrize("tokens", [1, 33])
def test_products_are_formed_in_the_dtype_that_was_asked_for(layer, tokens, quantizer, device, draw, judge):
    """QUANT-7: a quantized layer MUST form its products in the dtype that was asked for, no coarser and no finer."""
    weight, _ = layers.weights(layer, quantizer, draw)
    module = quantizer.layer(weight, None, device)

    x = torch.full((1, tokens, layer.columns), 1.0, device=device)
    seen = formed_in(lambda x: module(x.to(quantizer.dtype)), x)

    judge.exactly("compute dtype", seen, str(quantizer.compute_dtype).removeprefix("torch."))


@torch.no_grad()
@pytest.mark.parametrize("layer", [layers.PLAIN], ids=str)
@pytest.mark.parametrize("tokens", [1, 33])
def test_the_same_input_has_the_same_output(layer, tokens, quantizer, device, draw, judge):
    """QUANT-5: a quantized layer MUST answer equal inputs with equal bits, whatever it was asked before."""
    weight, bias = layers.weights(layer, quantizer, draw)
    module = quantizer.layer(weight, bias, device)
    x, other = (layers.activations(layer, n, draw).to(device, quantizer.dtype) for n in (tokens, 130))
    given = x.clone()

    first = module(x)
    again = module(x)
    module(other * 16)
    module(other[:, :1] / 16)
    after = module(x)

    judge.exactly("outputs that differ when asked again", int((again != first).sum()), 0)
    judge.exactly("outputs that differ after another request", int((after != first).sum()), 0)
    judge.exactly("inputs that were changed", int((x != given).sum()), 0)
