"""A layer with a sliding window keeps the window, and forgets the rest."""

from functools import cache, partial

import pytest
import torch

from fixtures.caching import write
from fixtures.meters import storage_bytes, tensors
from fixtures.models import configured
from fixtures.oracles.memory import kv_bytes, windows
from fixtures.questions import Usage

SHAPE = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
WINDOW = {**SHAPE, "sliding_window": 12}
SLIDING = cache(partial(configured, "mistral", {**WINDOW, "num_hidden_layers": 2}))
HYBRID = cache(
    partial(
        configured,
        "qwen2",
        {**WINDOW, "num_hidden_layers": 4, "use_sliding_window": True, "max_window_layers": 2},
    )
)
NEEDS = frozenset({"exact", "window"})
USAGES = [
    Usage("sliding-prompt", (40, 1, 1), NEEDS, config=SLIDING),
    Usage("sliding-steps", (1,) * 30, NEEDS, config=SLIDING),
    Usage("hybrid-prompt", (40, 1, 1), NEEDS, config=HYBRID),
    Usage("hybrid-turns", (5, 20, 1, 9, 1), NEEDS, config=HYBRID),
]


@pytest.mark.parametrize("usage", USAGES, ids=str)
def test_window_is_kept_and_nothing_else(kv_cache, dtype, usage, device, draw, judge):
    """KV-19: after a step a layer with a window MUST hold the window's tokens, no older one, and bytes for no more."""
    config, batch, start = usage.config(), 2, 0
    cache = kv_cache.make(config, batch, usage.length)
    shape = (len(windows(config)), 2, batch, config.num_key_value_heads, usage.length, 16)
    count = torch.arange(1, usage.length + 1.0, device=device)  # each token's numbers say which token it is
    given = count[:, None].expand(shape).to(dtype)

    for width in usage.widths:
        for layer in range(len(given)):
            write(cache, *given[layer, :, :, :, start : start + width], layer, start)
        start += width
    if device.type == "cuda":
        torch.cuda.synchronize()  # an offloaded layer is copied while the program goes on

    for layer, window in enumerate(windows(config)):
        # It may be there, and need not be: the window of the next query begins after it.
        oldest = usage.length - window + 1 if window else 0
        held = torch.cat([t.flatten().cpu() for t in tensors(cache.layers[layer]) if t.dim() == 4]).unique()
        kept = [n for n in held.tolist() if n]
        judge.exactly(f"layer {layer}: tokens too old", sum(n < oldest for n in kept), 0)
        newer, wanted = [n for n in kept if not n <= oldest], [*range(oldest + 1, start + 1)]  # NaN is of no token
        judge.exactly(
            f"layer {layer}: tokens of the window", *(" ".join(f"{n:g}" for n in ns) for ns in (newer, wanted))
        )
    slots = [kv_cache.slots(usage.length, usage.length, window) for window in windows(config)]
    predicted = kv_bytes(config, batch=batch, slots=slots, itemsize=dtype.itemsize)
    judge.exactly("bytes of the cache", storage_bytes(tensors(cache)), predicted, unit="bytes")
