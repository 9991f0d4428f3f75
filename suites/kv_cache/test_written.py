"""What a layer hands to attention is what was written into it: asked without a model, to the bit."""

from functools import cache, partial

import pytest
import torch

from fixtures.caching import misplaced, write
from fixtures.models import configured
from fixtures.oracles.memory import windows
from fixtures.questions import FLOATS, Usage

SHAPE = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
WINDOW = {**SHAPE, "sliding_window": 24}
DEEP = {"hidden_size": 256, "intermediate_size": 64, "num_attention_heads": 16, "num_key_value_heads": 16}
LAYERS = {
    "full": ("llama", {**SHAPE, "num_hidden_layers": 3}),
    "sliding": ("mistral", {**WINDOW, "num_hidden_layers": 3}),
    "hybrid": ("qwen2", {**WINDOW, "num_hidden_layers": 4, "use_sliding_window": True, "max_window_layers": 2}),
    "deep": ("llama", {**DEEP, "num_hidden_layers": 40}),
}
CONFIGS = {kind: cache(partial(configured, *asked)) for kind, asked in LAYERS.items()}
STEP = (1,)
WIDTHS = {
    "steps": STEP * 60,
    "prompt": (33, *STEP * 20),
    "just-full": (23, *STEP * 4, 24, *STEP * 3),
    "chunks": (7, 31, 1, 1, 64, 1, 13, 1),
    "exact-window": (24, *STEP * 3, 24, 25, 1),
    "long": (500, *STEP * 24, 500, 1, 1000, *STEP * 40),
}
DTYPES = dict.fromkeys(WIDTHS, FLOATS) | {"long": frozenset({torch.float32})}
# One feature is so many times as large, where the dtype has room for it: beyond what float16 can hold.
LOUD = dict.fromkeys((torch.float32, torch.bfloat16), 2.0**17)
WRITES = [
    Usage(f"{kind}-{name}", widths, config=CONFIGS[kind], dtypes=DTYPES[name])
    for kind in ("full", "sliding", "hybrid")
    for name, widths in WIDTHS.items()
]
# More layers than 5 bits count, more key heads and more rows than 3 do.
WRITES += [Usage("deep", (7, *STEP * 3, 2), config=CONFIGS["deep"])]
ROWS = {"deep": 9}
WRITES += [Usage("full-far", (16380, *STEP * 6, 16384, 1), config=CONFIGS["full"], devices=frozenset({"cuda"}))]


@pytest.mark.parametrize("usage", WRITES, ids=str)
def test_attention_is_handed_what_was_written(kv_cache, dtype, usage, device, draw, judge):
    """KV-2: a cache MUST hand attention each key and value that it was given and may see, to the bit, in its place."""
    config, batch = usage.config(), ROWS.get(usage.name, 3)
    cache = kv_cache.make(config, batch, usage.length)
    shape = (len(windows(config)), 2, batch, config.num_key_value_heads, usage.length, 16)
    given = torch.randn(shape, generator=draw).to(device=device, dtype=dtype)
    given[..., 0] *= LOUD.get(dtype, 1.0)

    start, wrong, first = 0, 0, ""
    for width in usage.widths:
        end = start + width
        for layer, window in enumerate(windows(config)):
            keys, values = given[layer, :, :, :, :end]
            seen = write(cache, keys[:, :, start:], values[:, :, start:], layer, start)
            oldest = 0 if window is None else max(0, start + 1 - window)
            count, place = misplaced(seen, keys[:, :, oldest:], values[:, :, oldest:], oldest)
            wrong, first = wrong + count, first or (place and f"layer {layer}, {place}")
        start = end

    judge.exactly("numbers that are not what was written", wrong, 0, place=first)
    judge.exactly("tokens in the cache", int(cache.get_seq_length()), usage.length)
