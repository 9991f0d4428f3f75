"""What a cache, fewer key-value heads, fewer bits and a known length are worth while decoding."""

import pytest
import torch

from fixtures import heads
from fixtures.decoding import decode
from fixtures.engagement import intended, quantized_names
from fixtures.generation import generated
from fixtures.heads import HEADS, SIZES, VOCABULARY
from fixtures.inputs import tokens

DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
PROMPT, COUNT = 64, 8


@torch.no_grad()
@pytest.mark.applies(real=(True,))
def test_cached_decoding_against_uncached(case, device, bench, make_ids, truth, right, compare):
    """TIME-1: two ways that are timed against each other MUST first both give what golden logits rank first."""
    dtype = DTYPES[device.type]
    model, prompt = bench.shelf.model(case, dtype, device), make_ids(batch=1, length=PROMPT)

    def way(use_cache):
        return generated(model, prompt, COUNT, use_cache=use_cache)

    for use_cache in (True, False):
        right(f"use_cache={use_cache}", prompt, way(use_cache), dtype, lambda ids, d: truth(model, ids, d))
    compare(f"uncached ÷ cached, {COUNT} tokens after {PROMPT}", lambda: way(True), lambda: way(False))


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [1, 2], ids=["mqa", "gqa"])
def test_shared_heads_against_multi_head(kv_heads, device, draw, decoded, right, compare):
    """TIME-1: two ways that are timed against each other MUST first both give what golden logits rank first."""
    size = SIZES[device.type]
    models = {n: heads.model(n, device) for n in (kv_heads, HEADS)}
    short = tokens(2, PROMPT, VOCABULARY, draw).to(device)
    long = tokens(size.batch, size.context, VOCABULARY, draw).to(device)

    for n, model in models.items():
        answer = generated(model, short, COUNT)
        right(f"{n} of {HEADS} heads", short, answer, size.dtype, lambda ids, d, model=model: decoded(model, ids, d))
    compare(
        f"{HEADS} ÷ {kv_heads} key-value heads, {size.new_tokens} tokens after {size.context}, batch {size.batch}",
        lambda: generated(models[kv_heads], long, size.new_tokens),
        lambda: generated(models[HEADS], long, size.new_tokens),
    )


@torch.no_grad()
@pytest.mark.applies(real=(True,), packed=(True,))
def test_quantized_decoding_against_bfloat16(case, quantizer, device, bench, make_ids, truth, right, compare, judge):
    """TIME-1: two ways that are timed against each other MUST first both give what golden logits rank first."""
    plain, prompt = bench.shelf.model(case, torch.bfloat16, device), make_ids(batch=1, length=PROMPT)
    rounded = bench.shelf.quantized(case, quantizer, device)

    # What a quantized model says is its own; that it is right to say it is what the checks of quantization are about.
    judge.exactly("quantized layers", quantized_names(rounded, quantizer), intended(plain, quantizer))
    right("bfloat16", prompt, generated(plain, prompt, COUNT), torch.bfloat16, lambda ids, d: truth(plain, ids, d))
    compare(
        f"{quantizer.name} ÷ bfloat16, {COUNT} tokens after {PROMPT}",
        lambda: generated(plain, prompt, COUNT),
        lambda: generated(rounded, prompt, COUNT),
    )


@torch.no_grad()
@pytest.mark.applies(real=(True,))
def test_first_step_at_a_length_against_the_second(case, device, bench, make_ids, truth, right, compare):
    """TIME-1: two ways that are timed against each other MUST first both give what golden logits rank first."""
    from transformers import DynamicCache

    dtype = DTYPES[device.type]
    model = bench.shelf.model(case, dtype, device)
    prompt = make_ids(batch=1, length=PROMPT)
    lengths = {"first": PROMPT // 2, "second": PROMPT // 2}
    caches = {name: DynamicCache(config=model.config) for name in lengths}
    for name, length in lengths.items():
        decode(model, caches[name], prompt, [length])

    # Both go through the same lengths, one a step behind the other.
    def step(name):
        at = lengths[name]
        lengths[name] += 1
        decode(model, caches[name], prompt[:, at:], [1], start=at)

    right("a step at a time", prompt, generated(model, prompt, COUNT), dtype, lambda ids, d: truth(model, ids, d))
    compare("second ÷ first step at a length", lambda: step("first"), lambda: step("second"))
