"""Where faults of attention get in: torch's kernel, transformers' interface, its eager attention, its masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from inspect import getsource
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from suites.meta.faults import all_of, swapped, swapped_item


@contextmanager
def kernel(change: Callable[..., Tensor]) -> Iterator[None]:
    """Patch torch's attention, whoever calls it. change(call, q, k, v, **keywords) -> output."""
    original = F.scaled_dot_product_attention

    def patched(query: Tensor, key: Tensor, value: Tensor, **keywords: Any) -> Tensor:
        return change(original, query, key, value, **keywords)

    with swapped(F, "scaled_dot_product_attention", patched):
        yield


def math_answers(call: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
    """A change for `kernel`: MATH answers, whatever was asked for."""
    with sdpa_kernel(SDPBackend.MATH):
        return call(q, k, v, **more)


@contextmanager
def softmax(change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Patch how torch's attention makes weights of scores. change(scores, seen) -> weights.

    Scores are float32, `(batch, heads, queries, keys)`, those of hidden keys like any other; seen is True where a key
    is visible, of the same shape. The kernel itself runs too, as one with this defect inside would be seen to.
    """

    def own(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        call(q, k, v, **more)
        scores, groups = scores_of(q, k, more), q.shape[1] // k.shape[1]
        weights = change(scores, shown(q, k, more).expand_as(scores))
        return (weights @ v.float().repeat_interleave(groups, 1)).to(q.dtype)

    with kernel(own):
        yield


@contextmanager
def mask(change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Patch what torch's attention shows. change(seen) -> seen, `(…, queries, keys)` bool."""

    def own(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return call(q, k, v, **more | {"attn_mask": change(shown(q, k, more)), "is_causal": False})

    with kernel(own):
        yield


def scores_of(q: Tensor, k: Tensor, more: dict[str, Any]) -> Tensor:
    """The scores that a call of torch's attention asks for, in float32, with what is added to them."""
    scale = q.shape[-1] ** -0.5 if more.get("scale") is None else more["scale"]
    scores = (q.float() * scale) @ k.float().repeat_interleave(q.shape[1] // k.shape[1], 1).mT
    added = more.get("attn_mask")
    return scores if added is None or added.dtype == torch.bool else scores + added


def shown(q: Tensor, k: Tensor, more: dict[str, Any]) -> Tensor:
    """The keys that a call of torch's attention shows, `(…, queries, keys)` bool."""
    given = more.get("attn_mask")
    if given is not None:
        return given if given.dtype == torch.bool else given > torch.finfo(given.dtype).min / 2
    seen = torch.ones(1, 1, q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device)
    return seen.tril() if more.get("is_causal") else seen


@contextmanager
def interface(change: Callable[..., Any], implementation: str = "sdpa") -> Iterator[None]:
    """Patch transformers' attention interface. change(forward, module, q, k, v, mask, **keywords)."""
    from transformers import AttentionInterface

    mapping = AttentionInterface._global_mapping
    original = mapping[implementation]

    def patched(*args: Any, **keywords: Any) -> Any:
        return change(original, *args, **keywords)

    with swapped_item(mapping, implementation, patched):
        yield


@contextmanager
def eager(change: Callable[..., Any], architecture: str = "llama") -> Iterator[None]:
    """Patch transformers' eager attention of an architecture, with the same signature as the interface's."""
    module = import_module(f"transformers.models.{architecture}.modeling_{architecture}")
    original = module.eager_attention_forward

    def patched(*args: Any, **keywords: Any) -> Any:
        return change(original, *args, **keywords)

    with swapped(module, "eager_attention_forward", patched):
        yield


@contextmanager
def masks(change: Callable[[Any, dict[str, Any]], Any]) -> Iterator[None]:
    """Patch transformers' mask builders. change(build, keywords) -> mask."""
    from transformers import AttentionMaskInterface

    mapping = AttentionMaskInterface._global_mapping

    def patched(name: str) -> Any:
        build = mapping[name]
        return swapped_item(mapping, name, lambda *args, **keywords: change(build, dict(keywords)))

    with all_of(patched("sdpa"), patched("eager")):
        yield


@contextmanager
def layers(change: Callable[..., Any], *kinds: str, method: str = "update") -> Iterator[None]:
    """Patch a method of kinds of cache layers, by name. change(original, layer, *args, **keywords)."""
    from transformers import cache_utils

    def patched(kind: Any) -> Any:
        original = getattr(kind, method)

        def call(self: Any, *args: Any, **keywords: Any) -> Any:
            return change(original, self, *args, **keywords)

        return swapped(kind, method, call)

    with all_of(*(patched(getattr(cache_utils, kind)) for kind in kinds)):
        yield


@contextmanager
def written(change: Callable[..., tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Patch what goes into any cache. change(cache, keys, values, layer) -> keys, values."""
    from transformers import Cache

    original = Cache.update

    def update(self: Any, k: Tensor, v: Tensor, layer: int, *args: Any, **more: Any) -> Any:
        return original(self, *change(self, k, v, layer), layer, *args, **more)

    with swapped(Cache, "update", update):
        yield


@contextmanager
def generation(method: str, change: Callable[..., Any]) -> Iterator[None]:
    """Patch a method of transformers' `generate`. change(original, model, *args, **keywords)."""
    from transformers import GenerationMixin

    original = getattr(GenerationMixin, method)

    @wraps(original)  # whose signature transformers looks at
    def patched(self: Any, *args: Any, **keywords: Any) -> Any:
        return change(original, self, *args, **keywords)

    with swapped(GenerationMixin, method, patched):
        yield


def cached(keywords: dict[str, Any]) -> int:
    """How many tokens are in the cache that a method of `generate` is handed, by either of its names."""
    cache = keywords.get("cache", keywords.get("past_key_values"))
    return 0 if cache is None else int(cache.get_seq_length())


def reads(method: str, name: str) -> None:
    """Raise AttributeError unless a method of `generate` mentions a name by which it could be misled."""
    from transformers import GenerationMixin

    if name not in getsource(getattr(GenerationMixin, method)):
        raise AttributeError(f"{method} does not read {name}")


def empties(layer: str) -> None:
    """Raise AttributeError unless a kind of cache layer has a reset of its own: others write zeros over what stays."""
    from transformers import cache_utils

    if "reset" not in vars(getattr(cache_utils, layer)):
        raise AttributeError(f"{layer} has no reset of its own")


def forward(name: str, run: Callable[..., Any]) -> Any:
    """The forward of a class of Llama's, as a function of the original."""
    from transformers.models.llama import modeling_llama

    owner = getattr(modeling_llama, name)
    original = owner.forward

    @wraps(original)
    def forward(self: Any, *args: Any, **more: Any) -> Any:
        return run(original, self, *args, **more)

    return swapped(owner, "forward", forward)


def drop_the_oldest_values(crop: Any, layer: Any, count: int) -> None:
    values = layer.values
    crop(layer, count)
    layer.values = values[..., values.shape[-2] - layer.keys.shape[-2] :, :]
