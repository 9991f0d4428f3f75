"""A quantized layer multiplies with the weights that it holds, whatever kernel takes the call."""

from functools import partial

import pytest
import torch

from fixtures import layers
from fixtures.oracles.rounding import SCHEMES, llm_int8
from fixtures.questions import Layer
from fixtures.rounded import formed_in

pytestmark = pytest.mark.applies(layers=(True,))


@torch.no_grad()
@pytest.mark.parametrize(("layer", "tokens"), layers.CALLS, ids=str)
def test_products_are_those_of_the_dequantized_weights(layer, tokens, quantizer, device, draw, judge):
    """QUANT-4: a quantized layer's output MUST be as close to float64 as plain arithmetic on its own weights is."""
    weight, bias = layers.weights(layer, quantizer, draw)
    x = layers.activations(layer, tokens, draw).to(device, quantizer.dtype)
    module = quantizer.layer(weight, bias, device)

    _judge_products(judge, quantizer, module, layers.laid_out(x), bias, quantizer.formed(device))


# As 4 bits are served, by the kernel for a single token; in other shapes and with other schemes in tier full.
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("layer", [layers.PLAIN], ids=str)
@pytest.mark.applies(name=("bnb-nf4",))
def test_products_of_a_step_in_half_precision(layer, dtype, quantizer, device, draw, judge):
    """QUANT-4: a quantized layer's output MUST be as close to float64 as plain arithmetic on its own weights is."""
    weight, bias = layers.weights(layer, quantizer, draw)
    x = layers.activations(layer, 1, draw).to(device, dtype)
    module = quantizer.layer(weight, bias, device)
    module.compute_dtype = dtype

    _judge_products(judge, quantizer, module, x, bias, quantizer.instead(device.type) or dtype)


# As both are served: many tokens, a bias, and features that are outliers.
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("layer", [layers.MOVED], ids=str)
@pytest.mark.applies(name=("bnb-int8", "bnb-nf4"))
def test_products_of_a_prompt_in_half_precision(layer, dtype, quantizer, device, draw, judge):
    """QUANT-4: a quantized layer's output MUST be as close to float64 as plain arithmetic on its own weights is."""
    weight, bias = layers.weights(layer, quantizer, draw)
    x = layers.activations(layer, 33, draw).to(device, dtype)
    module = quantizer.layer(weight, bias, device)
    module.compute_dtype = dtype

    _judge_products(judge, quantizer, module, x, bias, quantizer.instead(device.type) or dtype)


# None but the outliers reach it, where activations are half of what they are elsewhere.
THRESHOLD = 2.0


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16], ids=["float16"])
@pytest.mark.applies(name=("bnb-int8", "llama-gqa"))
def test_outliers_begin_where_it_was_asked_for(case, quantizer, dtype, device, draw, judge):
    """QUANT-4: a quantized layer's output MUST be as close to float64 as plain arithmetic on its own weights is."""
    model = quantizer.load(case.checkpoint(), device, llm_int8_threshold=THRESHOLD)
    module = model.model.layers[0].mlp.down_proj
    layer = Layer("down", module.out_features, module.in_features)
    x = layers.activations(layer, 33, draw).to(device, dtype) / 2

    multiply = partial(llm_int8, threshold=THRESHOLD)
    _judge_products(judge, quantizer, module, x, None, quantizer.formed(device), multiply)


def _judge_products(judge, quantizer, module, x, bias, formed, multiply=None):
    """What a layer makes of activations, its products formed in a dtype, beside its weights' own."""
    dense, multiply = quantizer.dense(module), multiply or SCHEMES[quantizer.scheme].multiply
    added = torch.zeros(len(dense)) if bias is None else bias
    rows = x.reshape(1, -1, x.shape[-1])

    # Exact, so that a feature of small weights counts as much as one of large ones.
    even = layers.magnitudes(dense)

    candidate = module(x).reshape(*rows.shape[:2], -1).to(formed)
    reference = multiply(rows.to(formed), dense.to(formed)) + added.to(x.device, formed)
    golden = multiply(rows.double(), dense.double()) + added.to(x.device).double()

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

    handed = module(x)
    first = handed.clone()
    again = module(x).clone()
    module(other[:, :tokens] / 2)
    overwritten = int((handed != first).sum())
    module(other * 16)
    module(other[:, :1] / 16)
    after = module(x)

    judge.exactly("outputs that differ when asked again", int((again != first).sum()), 0)
    judge.exactly("outputs that differ after another request", int((after != first).sum()), 0)
    judge.exactly("outputs that changed after they were handed out", overwritten, 0)
    judge.exactly("inputs that were changed", int((x != given).sum()), 0)
