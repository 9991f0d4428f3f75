"""A third party's whole integration in one file that imports nothing of the suite: `pytest -p suites.meta.acme`.

Everything in here is a real, if plain, implementation: attention by online softmax, a cache in one buffer, rotary
tables, 8-bit rounding, a small model.
"""

import math

import torch
from torch import nn


def attention(q, k, v, *, causal, scale=None):
    """Attention with an online softmax over tiles of 32 keys (Milakov and Gimelshein 2018, arXiv:1805.02867)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1).float(), v.repeat_interleave(groups, 1).float()
    scaled = q.float() * (scale or 1 / math.sqrt(q.shape[-1]))
    position = torch.arange(q.shape[-2], device=q.device)[:, None] + k.shape[-2] - q.shape[-2]
    top = torch.full((*q.shape[:-1], 1), -torch.inf, device=q.device)
    total, out = torch.zeros_like(top), torch.zeros_like(q, dtype=torch.float32)
    for start in range(0, k.shape[-2], 32):
        scores = scaled @ k[..., start : start + 32, :].mT
        if causal:
            key = start + torch.arange(scores.shape[-1], device=q.device)
            scores = scores.masked_fill(key > position, -torch.inf)
        new = torch.maximum(top, scores.amax(-1, keepdim=True))
        weights = (scores - new).exp()
        shrink = (top - new).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        out = out * shrink + weights @ v[..., start : start + 32, :]
        top = new
    return (out / total).to(q.dtype)


def pytest_spiritlevel_attention(register):
    register("acme", call=attention, dtypes={torch.float32, torch.bfloat16}, longest=1000)


def make_cache(config, batch, length):
    """A transformers cache whose layers write into buffers of the whole length."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Layer(DynamicLayer):
        def lazy_initialization(self, keys, *args):
            super().lazy_initialization(keys, *args)
            shape = (*keys.shape[:2], length, keys.shape[-1])
            self.hold(torch.zeros(2, *shape, dtype=keys.dtype, device=keys.device), 0)

        def hold(self, buffers, tokens):
            self.buffers = buffers
            self.keys, self.values = buffers[:, :, :, :tokens]

        def update(self, keys, values, *args, **kwargs):
            if not self.is_initialized:
                self.lazy_initialization(keys, values)
            start, end = self.keys.shape[-2], self.keys.shape[-2] + keys.shape[-2]
            if end > length:
                raise ValueError(f"{end} tokens do not fit into a cache for {length}")
            self.buffers[:, :, :, start:end] = torch.stack([keys, values])
            self.hold(self.buffers, end)
            return self.keys, self.values

        def crop(self, count):  # tokens to keep, or, in transformers 5, to drop
            self.hold(self.buffers, count if count > 0 else self.keys.shape[-2] + count)

        def reorder_cache(self, order):
            self.hold(self.buffers[:, order], self.keys.shape[-2])

        def batch_select_indices(self, rows):
            self.reorder_cache(rows)

        def batch_repeat_interleave(self, count):
            self.hold(self.buffers.repeat_interleave(count, 1), self.keys.shape[-2])

        def reset(self):
            self.hold(self.buffers, 0)

    cache = DynamicCache()
    cache.layers = [Layer() for _ in range(config.num_hidden_layers)]
    return cache


def pytest_spiritlevel_kv_cache(register):
    register(
        "acme",
        make=make_cache,
        slots=lambda tokens, length, window: length,
        serves=lambda config: not getattr(config, "kv_lora_rank", None),  # its keys and values are of one size
        operations={"crop", "crop-window", "reorder", "select", "repeat", "reset", "copy", "spare"},
        unwritten=lambda cache: [layer.buffers[:, :, :, layer.keys.shape[-2] :] for layer in cache.layers],
    )


def tables(positions):
    """RoPE with theta 10000 over 32 dimensions."""
    angles = positions[:, None].float() / 10000.0 ** (torch.arange(0, 32, 2, device=positions.device).float() / 32)
    return angles.cos(), angles.sin()


def pytest_spiritlevel_positions(register):
    known = {"rope_type": "default", "rope_theta": 10000.0, "dim": 32, "max_position_embeddings": 4096}
    register("acme-rope", kind="rope", compute=tables, parameters=known)


class Int8Linear(nn.Module):
    """Weights in 8 bits, one scale a row; activations as they are."""

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("codes", (weight / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.codes * self.scale, self.bias)


def load_int8(folder, device):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Int8Linear(module))
    return model


def quantized_layer(weight, bias, device):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight, linear.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)
    return Int8Linear(linear).to(device).eval()


def pytest_spiritlevel_quantizer(register):
    known = {"load": load_int8, "is_quantized": lambda module: isinstance(module, Int8Linear)}
    register("acme", scheme="int8-row", **known)
    # The same again, with all that can be asked of a quantizer.
    dense = {"layer": quantized_layer, "dense": lambda layer: layer.codes * layer.scale}
    register("acme-layers", scheme="int8-row", **known, **dense)


def load_model(dtype, device):
    import tempfile

    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.2,
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        return LlamaForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()


def pytest_spiritlevel_model(register):
    register("acme", architecture="llama", load=load_model)
