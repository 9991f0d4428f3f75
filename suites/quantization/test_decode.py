"""Decoding under quantized weights is what a prefill under the same weights is."""

import copy

import pytest
import torch
from transformers import DynamicCache

from fixtures.agreement import kl_divergence
from fixtures.decoding import decode, one_by_one
from fixtures.quantized_caches import CACHES

# The architectures of tier full are tried under attention so far.
pytestmark = [pytest.mark.applies(tier=("standard",)), pytest.mark.applies(real=(False,))]

PROMPT, LENGTH = 17, 48


@torch.no_grad()
@pytest.mark.applies(dense=(True,))
def test_decode_is_as_accurate_as_prefill_under_quantized_weights(case, quantizer, device, bench, make_ids, judge):
    """QUANT-12: decoding with a cache under quantized weights MUST be what a prefill under the same weights is."""
    full = bench.shelf.model(case, torch.float32, device)
    candidate = bench.shelf.quantized(case, quantizer, device)
    ids = make_ids(batch=2, length=LENGTH)

    decoded = decode(candidate, DynamicCache(), ids, one_by_one(PROMPT, ids.shape[1]))
    prefill = candidate(ids, use_cache=False).logits
    reference, golden = bench.shelf.with_dense(case, quantizer, full, ids)

    formed = quantizer.formed(device)
    for what, logits in (("decode:", decoded), ("prefill:", prefill)):
        judge(logits.to(formed), reference.to(formed), golden, what=what)


@torch.no_grad()
def test_decode_keeps_the_distribution_of_prefill(case, quantizer, device, bench, make_ids, judge):
    """QUANT-12: decoding with a cache under quantized weights MUST be what a prefill under the same weights is."""
    full = bench.shelf.model(case, torch.float32, device)
    candidate = bench.shelf.quantized(case, quantizer, device)
    ids = make_ids(batch=2, length=LENGTH)

    prefill = candidate(ids, use_cache=False).logits
    apart = kl_divergence(prefill, decode(candidate, DynamicCache(), ids, one_by_one(PROMPT, ids.shape[1]))).mean()

    cost = kl_divergence(full(ids, use_cache=False).logits, prefill).mean()
    judge.at_most("KL of decode to prefill, in parts of what quantization costs", float(apart / cost), quantizer.dtype)


@torch.no_grad()
@pytest.mark.applies(dense=(True,))
@pytest.mark.optional("cache that rounds")
@pytest.mark.parametrize("rounding", CACHES, ids=str)
def test_a_rounding_cache_costs_the_same_under_quantized_weights(
    case, quantizer, rounding, device, bench, make_ids, judge
):
    """QUANT-13: a cache that rounds MUST do under quantized weights what it does under the same weights unpacked."""
    full = bench.shelf.model(case, torch.float32, device)
    candidate = bench.shelf.quantized(case, quantizer, device)
    unpacked = copy.deepcopy(full)
    unpacked.load_state_dict(bench.shelf.dense(case, quantizer, full, device))
    ids = make_ids(batch=2, length=LENGTH)

    plain = unpacked(ids, use_cache=False).logits
    wanted = decode(unpacked, rounding.make(full.config), ids, one_by_one(PROMPT, ids.shape[1]))
    found = decode(candidate, rounding.make(candidate.config), ids, one_by_one(PROMPT, ids.shape[1]))

    cost = kl_divergence(plain, wanted).mean()
    noise = kl_divergence(plain, candidate(ids, use_cache=False).logits).mean()
    judge.exactly("the cache rounds", str(float(cost) > 0), "True")
    apart = float(kl_divergence(wanted, found).mean() / (cost + noise))
    judge.at_most("KL of packed to unpacked, in parts of what cache and products cost", apart, quantizer.formed(device))
