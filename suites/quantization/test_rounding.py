"""A weight comes out of a quantized layer where textbook rounding puts it."""

import math

import pytest
import torch

from fixtures import layers
from fixtures.engagement import intended, intended_modules, quantized_names
from fixtures.models import seeded_model
from fixtures.oracles.rounding import PUBLISHED, SCHEMES, SIGMAS
from fixtures.oracles.rounding_theory import mean_absolute_error
from fixtures.pretrained import pretrained
from fixtures.rounded import farthest_from_one, slips, slips_of_layers


@torch.no_grad()
@pytest.mark.parametrize("layer", layers.READ, ids=str)
def test_weights_are_rounded_as_the_textbook_rounds_them(layer, quantizer, device, draw, judge):
    """QUANT-3: a dequantized weight MUST be as far from the original as textbook rounding puts it, and no nearer."""
    weight, _ = layers.weights(layer, quantizer, draw)
    original = weight.to(device)

    candidate = quantizer.dense(quantizer.layer(weight, None, device))

    textbook = SCHEMES[quantizer.scheme].weight(original)
    further, nearer = slips(candidate, textbook, original, quantizer)
    judge.exactly("weights that are further off than the textbook's", further, 0)
    judge.exactly("weights that are nearer than the textbook's", nearer, 0)
    ratio = (candidate - original).norm() / (textbook - original).norm()
    judge.within(f"error ÷ textbook {quantizer.scheme}", float(ratio))


@torch.no_grad()
@pytest.mark.applies(read=(True,), tier=("standard",))
def test_every_layer_of_a_model_is_rounded_as_the_textbook_rounds_it(case, quantizer, device, bench, judge):
    """QUANT-3: a dequantized weight MUST be as far from the original as textbook rounding puts it, and no nearer."""
    full = bench.shelf.model(case, torch.float32, device)
    candidate = bench.shelf.quantized(case, quantizer, device)
    released, loaded = intended_modules(full, quantizer), bench.shelf.as_loaded(case, quantizer, device)

    both = {name: layer for name, layer in loaded.items() if name in released}
    further, nearer, ratios = slips_of_layers(both, released, quantizer)
    worst = farthest_from_one(ratios)

    judge.exactly("quantized layers", quantized_names(candidate, quantizer), intended(full, quantizer))
    judge.exactly("weights that are further off than the textbook's", str(further), "{}")
    judge.exactly("weights that are nearer than the textbook's", str(nearer), "{}")
    judge.within(f"error ÷ textbook {quantizer.scheme}", ratios[worst], place=worst)


# GPT-2 stores its weights (in, out), and one in three of them is square.
TRANSPOSED = {"n_embd": 128, "n_layer": 1, "n_head": 4, "n_positions": 64}


@torch.no_grad()
@pytest.mark.parametrize("stored", ["transposed"])
@pytest.mark.applies(name=("bnb-int8", "bnb-nf4"))
def test_a_weight_that_is_stored_the_other_way_is_rounded(stored, quantizer, device, bench, tmp_path, judge):
    """QUANT-3: a dequantized weight MUST be as far from the original as textbook rounding puts it, and no nearer."""
    seeded_model("gpt2", TRANSPOSED, bench.seed).save_pretrained(tmp_path)
    full, candidate = pretrained(tmp_path, device), quantizer.load(tmp_path, device)

    loaded = {name: module for name, module in candidate.named_modules() if quantizer.is_quantized(module)}
    further, nearer, _ = slips_of_layers(loaded, intended_modules(full, quantizer), quantizer)

    judge.exactly("quantized layers", quantized_names(candidate, quantizer), intended(full, quantizer))
    judge.exactly("weights that are further off than the textbook's", str(further), "{}")
    judge.exactly("weights that are nearer than the textbook's", str(nearer), "{}")


# Scales are kept as they are, or rounded too, as where adapters were trained on 4 bits (QLoRA) and are merged.
SCALES = {"kept": {}, "rounded": {"bnb_4bit_use_double_quant": True}}


@torch.no_grad()
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.applies(name=("bnb-nf4", "llama-gqa", "bigcode-mqa"))
def test_a_model_that_is_unpacked_has_the_weights_of_its_layers(case, quantizer, scales, device, judge):
    """QUANT-3: a dequantized weight MUST be as far from the original as textbook rounding puts it, and no nearer."""
    model = quantizer.load(case.checkpoint(), device, **SCALES[scales])
    wanted = {name: quantizer.dense(m) for name, m in model.named_modules() if quantizer.is_quantized(m)}

    unpacked = model.dequantize()

    changed = [n for n, weight in wanted.items() if not torch.equal(unpacked.get_submodule(n).weight.float(), weight)]
    judge.exactly("layers were packed", bool(wanted), True)
    judge.exactly("layers that differ", " ".join(changed) or "none", "none")


@torch.no_grad()
@pytest.mark.parametrize("layer", [layers.NORMAL], ids=str)
def test_a_normal_weight_is_as_far_off_as_theory_says(layer, quantizer, device, draw, judge):
    """QUANT-3: a dequantized weight MUST be as far from the original as textbook rounding puts it, and no nearer."""
    weight, _ = layers.weights(layer, quantizer, draw)
    scheme = SCHEMES[quantizer.scheme]
    block = scheme.block or layer.columns

    candidate = quantizer.dense(quantizer.layer(weight, None, device))

    measured = float((candidate.cpu() - weight).abs().mean(dtype=torch.float64))
    expectation, spread = mean_absolute_error(scheme.book, block)
    sigma = spread / math.sqrt(weight.numel() / block)
    judge.sigmas("mean absolute error, by theory", measured, expectation, sigma, SIGMAS)
    for mean, deviation in PUBLISHED.get(quantizer.scheme, ()):
        judge.sigmas("mean absolute error, as its authors publish it", measured, mean, deviation, SIGMAS)
