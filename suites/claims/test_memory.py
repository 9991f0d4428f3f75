"""What is claimed of memory is what is measured: weights, the peak of a request, the cache."""

import pytest


@pytest.mark.capability("weights")
def test_weights_take_what_is_claimed(claim, case, device, sides, judge):
    """CLAIM-1: weights that are loaded as a claim says MUST take the bytes that it says."""
    (served,) = sides

    judge.claim(claim, served.weight_bytes)


@pytest.mark.capability("peak")
def test_request_takes_what_is_claimed(claim, case, device, sides, draw, judge):
    """CLAIM-2: a request of the size that a claim names MUST take the memory that it says, at its peak."""
    (served,) = sides

    memory = served.memory(served.ids(draw))

    judge.evidence["weight bytes"] = served.weight_bytes
    judge.claim(claim, {"peak memory": memory.all, "added memory": memory.added}[claim.measure])


@pytest.mark.capability("kv")
def test_cache_takes_what_is_claimed(claim, case, device, sides, draw, judge):
    """CLAIM-3: a cache MUST take the bytes a token, grow with tokens and be reduced as a claim says."""
    (served,) = sides
    ids = served.ids(draw)
    half = ids.shape[1] // 2

    short, long = served.cache_bytes(ids[:, :half]), served.cache_bytes(ids)

    each = long / ids.numel()
    found = {
        "kv bytes per token": each,
        "kv growth": (long - short) / (ids[:, half:].numel() * each),
        "kv reduction": served.unshared_bytes() / each,
    }
    judge.evidence["bytes of the cache"] = {str(half): short, str(ids.shape[1]): long}
    judge.claim(claim, found[claim.measure])
