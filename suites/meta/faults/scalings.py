"""Faults of scaled rotary encodings: the frequencies that a rope_type makes, and when it takes others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, swapped
from suites.meta.faults.positions import forward_of, rotary, scaling

TABLES = "positions/test_tables.py"
HISTORY = "positions/test_history.py"


def parameters(config: Any) -> dict[str, Any]:
    """Where a config keeps its scaling: 5.x's dictionary, or 4.57's."""
    found: dict[str, Any] = getattr(config, "rope_parameters", None) or config.rope_scaling
    return found


@contextmanager
def _read_as(kind: str, **said: Any) -> Iterator[None]:
    """Frequencies of one rope_type, made as if a config said something else, or, where that is None, nothing."""

    def change(original: Any, config: Any, *args: Any, **more: Any) -> Any:
        p = parameters(config)
        before = dict(p)
        p |= said
        try:
            return original(config, *args, **more)
        finally:
            p.clear()
            p.update(before)

    with scaling(kind, change):
        yield


@fault(
    "POS-1",
    TABLES,
    "rope-yarn-betas",
    source="https://github.com/pytorch/torchtitan/pull/3787",
    unseen="never, but short texts are nearly the same",
)
def yarn_has_its_betas_swapped() -> Iterator[None]:
    """beta_fast and beta_slow change places, and the ramp its direction."""

    def change(original: Any, config: Any, *args: Any, **more: Any) -> Any:
        p = parameters(config)
        fast, slow = p.get("beta_fast") or 32, p.get("beta_slow") or 1
        before = dict(p)
        p |= {"beta_fast": slow, "beta_slow": fast}
        try:
            return original(config, *args, **more)
        finally:
            p.clear()
            p.update(before)

    with scaling("yarn", change):
        yield


@fault("POS-1", TABLES, "rope-yarn-cpu or rope-yarn-cuda", source="our own", unseen="factor 1")
def yarn_applies_its_temperature_twice() -> Iterator[None]:
    """The attention factor is squared: applied to the scores as well as to queries and keys."""

    def change(original: Any, *args: Any, **more: Any) -> Any:
        frequencies, heat = original(*args, **more)
        return frequencies, heat**2

    with scaling("yarn", change):
        yield


@fault("POS-1", TABLES, "rope-yarn-ramp", source="our own", unseen="truncate = true, which is the default")
def yarn_truncates_its_ramp_always() -> Iterator[None]:
    """truncate = false, as gpt-oss has it, is not read."""
    with _read_as("yarn", truncate=True):
        yield


@fault("POS-1", TABLES, "rope-yarn-mscale", source="our own", unseen="mscale equal to mscale_all_dim's default")
def yarn_ignores_mscale() -> Iterator[None]:
    """The temperature is 0.1 ln s + 1 whatever mscale and mscale_all_dim say."""

    def change(original: Any, config: Any, *args: Any, **more: Any) -> Any:
        return original(config, *args, **more)[0], 0.1 * math.log(parameters(config)["factor"]) + 1

    with scaling("yarn", change):
        yield


@fault(
    "POS-1",
    TABLES,
    "rope-yarn-cpu or rope-yarn-cuda",
    source="https://github.com/huggingface/transformers/issues/38224",
    unseen="max_position_embeddings that is the trained length times the factor",
)
def yarns_factor_is_a_ratio_of_lengths() -> Iterator[None]:
    """The factor is max_position_embeddings over the trained length, whatever `factor` says: for Qwen2.5 1, not 4."""

    def change(original: Any, config: Any, *args: Any, **more: Any) -> Any:
        p = parameters(config)
        kept, trained = p["factor"], p.get("original_max_position_embeddings") or config.max_position_embeddings
        p["factor"] = config.max_position_embeddings / trained
        try:
            return original(config, *args, **more)
        finally:
            p["factor"] = kept

    with scaling("yarn", change):
        yield


@fault("POS-1", TABLES, "rope-linear", source="our own", unseen="factor 1")
def linear_scaling_is_applied_twice() -> Iterator[None]:
    """Positions are divided by the factor, and the frequencies too."""

    def change(original: Any, config: Any, *args: Any, **more: Any) -> Any:
        frequencies, heat = original(config, *args, **more)
        return frequencies / parameters(config)["factor"], heat

    with scaling("linear", change):
        yield


@fault(
    "POS-1",
    TABLES,
    "rope-longrope",
    source="https://github.com/vllm-project/vllm/issues/27414",
    unseen="texts within the trained length",
)
def longrope_never_takes_its_long_factors() -> Iterator[None]:
    """A text beyond the trained length is turned by the short factors."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        longest = positions.max()
        cos, sin = forward(module, x, torch.zeros_like(positions))
        heat = cos[..., :1]
        angles = positions[..., None].float() * module.original_inv_freq.to(x.device)
        table = torch.cat([angles, angles], -1)
        return (table.cos() * heat, table.sin() * heat) if longest else (cos, sin)

    with forward_of("phi3.modeling_phi3", "Phi3RotaryEmbedding", change):
        yield


@fault(
    "POS-1",
    TABLES,
    "rope-llama3-32",
    source="our own: the factors of Llama 3.1 as constants",
    unseen="Llama 3.1, whose factor is 8; short distances",
)
def llama3_factors_are_compiled_in() -> Iterator[None]:
    """Llama 3's low frequencies are divided by 8, whatever `factor` says: Llama 3.2's is 32."""
    with _read_as("llama3", factor=8.0):
        yield


@fault(
    "POS-1",
    TABLES,
    "rope-longrope-heat",
    source="https://github.com/lablup/mlxcel/issues/1358, where it is called short_mscale and long_mscale",
    unseen="configs without an attention_factor",
)
def longropes_own_temperature_is_not_read() -> Iterator[None]:
    """LongRoPE's temperature is sqrt(1 + ln s / ln L), whatever attention_factor says."""
    with _read_as("longrope", attention_factor=None):
        yield


@fault(
    "POS-6",
    HISTORY,
    "answer and rope-longrope",
    source="https://github.com/huggingface/transformers/pull/33129",
    unseen="prompts that start beyond the trained length, or answers that never reach it",
)
def a_cache_of_short_factors_outlives_the_switch() -> Iterator[None]:
    """An answer that grows beyond the trained length keeps keys that the short factors turned."""
    from transformers import GenerationMixin
    from transformers.models.phi3.modeling_phi3 import Phi3ForCausalLM

    plain = GenerationMixin.prepare_inputs_for_generation
    with swapped(Phi3ForCausalLM, "prepare_inputs_for_generation", plain):
        yield


@fault("POS-6", HISTORY, "long-then-short and rope-dynamic", source="our own", unseen="a first prompt")
def frequencies_stay_stretched() -> Iterator[None]:
    """Dynamic NTK never goes back: a short prompt takes the base of the longest one before it."""
    longest: dict[int, int] = {}

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        reach = longest[id(module)] = max(longest.get(id(module), 0), int(positions.max()))
        both = forward(module, x, torch.cat([positions, torch.full_like(positions[:, :1], reach)], -1))
        return tuple(t[:, :-1] for t in both)

    with rotary(change):
        yield


@fault("POS-6", HISTORY, "long-then-trained and rope-longrope", source="our own", unseen="every other length")
def the_switch_to_long_factors_comes_one_token_early() -> Iterator[None]:
    """A text that is exactly as long as the trained length is taken for a longer one."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        both = forward(module, x, torch.cat([positions, positions[:, -1:] + 1], -1))
        return tuple(t[:, :-1] for t in both)

    with forward_of("phi3.modeling_phi3", "Phi3RotaryEmbedding", change):
        yield
