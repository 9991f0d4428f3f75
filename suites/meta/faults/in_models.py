"""Faults of whole models: what a library hands to its kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from suites.meta.faults import fault, patches, swapped

FILE = "attention/test_model_logits.py"
LOGITS = (FILE, "test_logits and sdpa-llama-gqa-float32")
FULL = {"options": ("--tier", "full")}


@fault("ATTN-2", *LOGITS, source="https://github.com/huggingface/transformers/pull/38290", unseen="eager")
def scale_is_applied_twice() -> Iterator[None]:
    """Queries are multiplied by 1/sqrt(d) and the kernel scales again."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        return call(module, q * (more.get("scaling") or q.shape[-1] ** -0.5), k, v, mask, **more)

    with patches.interface(change):
        yield


@fault(
    "ATTN-2",
    FILE,
    "test_logits and llama-gqa-float32 and (eager or (sdpa and not math and not flash))",
    source="https://github.com/huggingface/transformers/issues/31891",
    unseen="any comparison of eager with sdpa: both read the same config",
)
def scale_comes_from_the_wrong_dimension() -> Iterator[None]:
    """The scale is 1/sqrt(224), not 1/sqrt(256), in eager and in sdpa alike: 7 % too large."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        more["scaling"] = (more.get("scaling") or q.shape[-1] ** -0.5) * math.sqrt(256 / 224)
        return call(module, q, k, v, mask, **more)

    with patches.interface(change), patches.eager(change):
        yield


@fault(
    "ATTN-2",
    FILE,
    "test_logits and sdpa-granite-multipliers-float32",
    source="https://github.com/huggingface/transformers/pull/44397",
    unseen="models whose scale is 1/sqrt(head_dim); eager",
    **FULL,
)
def scale_of_the_config_is_ignored() -> Iterator[None]:
    """The scale that a config asks for does not reach the kernel."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        return call(module, q, k, v, mask, **more | {"scaling": None})

    with patches.interface(change):
        yield


@fault(
    "ATTN-2",
    FILE,
    "test_logits and sdpa-falcon-alibi-float32",
    source="https://github.com/huggingface/transformers/issues/29067",
    unseen="eager; models without ALiBi",
    **FULL,
)
def alibi_is_dropped_by_sdpa() -> Iterator[None]:
    """Of an additive mask only what hides reaches the kernel: ALiBi is lost."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        if more.get("attn_mask") is not None:
            more["attn_mask"] = patches.shown(q, k, more)
        return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault("ATTN-2", *LOGITS, source="https://github.com/huggingface/transformers/issues/48748", unseen="padding, decode")
def future_leaks_where_the_mask_is_skipped() -> Iterator[None]:
    """The mask is left out as an optimisation, and is_causal is not set."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        if mask is None and q.shape[2] > 1:
            more["is_causal"] = False
        return call(module, q, k, v, mask, **more)

    with patches.interface(change):
        yield


@fault(
    "ATTN-2",
    FILE,
    "test_logits and sdpa-mistral-window-float32",
    source="https://github.com/huggingface/transformers/issues/39408",
    unseen="texts shorter than the window",
)
def sliding_window_sees_one_key_more() -> Iterator[None]:
    """A query sees W + 1 keys."""
    from transformers import masking_utils

    def overlay(window: int) -> Any:
        return lambda batch, head, query, key: key > query - window - 1

    with swapped(masking_utils, "sliding_window_overlay", overlay):
        yield


@fault(
    "ATTN-2",
    FILE,
    "test_logits and sdpa-gemma3-layers-float32",
    source="our own: one mask for all layers",
    unseen="models whose layers are alike; texts shorter than the window",
    **FULL,
)
def full_layers_get_the_window_too() -> Iterator[None]:
    """Where layers with a window and without take turns, all are masked as the first one is."""
    first: dict[str, Any] = {}

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        if module.layer_idx == 0:
            first["mask"] = mask
        return call(module, q, k, v, first["mask"], **more)

    with patches.interface(change):
        yield


@fault("ATTN-2", *LOGITS, source="our own: view where transpose is meant", unseen="one head")
def heads_are_joined_in_the_wrong_order() -> Iterator[None]:
    """The output is handed back as (heads, length), and read as (length, heads)."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        out, weights = call(module, q, k, v, mask, **more)
        return out.transpose(1, 2).reshape(out.shape), weights

    with patches.interface(change):
        yield


@fault(
    "ATTN-2",
    FILE,
    "test_logits and sdpa-qwen2-full-float32",
    source="https://github.com/huggingface/transformers/issues/38002",
    unseen="texts shorter than the window; configs that use theirs",
    **FULL,
)
def a_window_that_is_not_used_acts() -> Iterator[None]:
    """Qwen2's sliding_window acts in all layers, although use_sliding_window is false."""
    from transformers.models.qwen2.configuration_qwen2 import Qwen2Config

    original = Qwen2Config.__post_init__

    def read(self: Any, **more: Any) -> None:
        used, self.use_sliding_window = self.use_sliding_window, True
        if not used:
            self.max_window_layers = 0
        original(self, **more)
        self.use_sliding_window = used

    with swapped(Qwen2Config, "__post_init__", read):
        yield


@fault(
    "ATTN-2",
    FILE,
    "test_logits and sdpa-llama-biases-float32",
    source="our own: a fused kernel of SiLU and the product with the gate",
    unseen="models whose activation is SiLU, as nearly all of Llama's kind",
    **FULL,
)
def activation_of_the_config_is_ignored() -> Iterator[None]:
    """Llama's MLP has SiLU, whatever hidden_act says."""

    def run(forward: Any, mlp: Any, x: Tensor) -> Tensor:
        out: Tensor = mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
        return out

    with patches.forward("LlamaMLP", run):
        yield


@fault(
    "ATTN-2",
    FILE,
    "test_experts and sdpa-mixtral-experts-float32",
    source="https://github.com/vllm-project/vllm-ascend/pull/11258",
    unseen="calls of few tokens: an expert takes 256 here",
    **FULL,
)
def experts_have_a_capacity() -> Iterator[None]:
    """An expert takes the first 256 tokens of a call that choose it, and those beyond go without."""
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    original = MixtralExperts.forward

    def forward(self: Any, x: Tensor, chosen: Tensor, weights: Tensor) -> Any:
        one_hot = F.one_hot(chosen, self.num_experts)
        taken = (one_hot.flatten(0, 1).cumsum(0).view_as(one_hot) * one_hot).sum(-1) <= 256
        return original(self, x, chosen, weights * taken)

    with swapped(MixtralExperts, "forward", forward):
        yield
