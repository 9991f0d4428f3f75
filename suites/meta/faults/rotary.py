"""Faults of rotary encodings: what is turned, by which angle, and what a model makes of its config."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import after_loading, fault, swapped
from suites.meta.faults.positions import forward_of, rotary

TABLES = "positions/test_tables.py"
DECLARED = "positions/test_declared.py"
TURNED = ("positions/test_rotation.py", "llama-gqa and float32")


@fault(
    "POS-1",
    TABLES,
    "rope-partial",
    source="https://github.com/huggingface/transformers/issues/48630",
    unseen="heads that rotate as a whole",
)
def a_partial_rotation_turns_the_whole_head() -> Iterator[None]:
    """partial_rotary_factor is not read."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        size = module.config.hidden_size // module.config.num_attention_heads
        frequencies = 10000.0 ** -(torch.arange(0, size, 2, device=x.device) / size)
        table = (positions[..., None].float() * frequencies).repeat(1, 1, 2)
        return table.cos().to(x.dtype), table.sin().to(x.dtype)

    with forward_of("phi3.modeling_phi3", "Phi3RotaryEmbedding", change):
        yield


@fault(
    "POS-1",
    TABLES,
    "rope-partial",
    source="https://github.com/ml-explore/mlx-lm/pull/1698",
    unseen="heads that rotate as a whole",
)
def a_partial_rotation_takes_the_whole_heads_exponents() -> Iterator[None]:
    """partial_rotary_factor shortens the table and not the divisor of its exponents."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        kept = module.inv_freq
        share = 2 * len(kept) / (module.config.hidden_size // module.config.num_attention_heads)
        module.inv_freq = kept**share
        try:
            return forward(module, x, positions)
        finally:
            module.inv_freq = kept

    with forward_of("phi3.modeling_phi3", "Phi3RotaryEmbedding", change):
        yield


@fault("POS-1", TABLES, "rope-default", source="our own", unseen="positions below 2,049")
def positions_are_float16() -> Iterator[None]:
    """2,049 becomes 2,048, and what is beyond 65,504 has no place at all."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        return forward(module, x, positions.clamp(max=65504).half().long())

    with rotary(change):
        yield


@fault(
    "POS-1",
    TABLES,
    "test_model_tables and llama-gqa and float32",
    source="https://github.com/NVIDIA/Megatron-LM/issues/535",
    unseen="models that are not float16; positions below 2,049",
)
def positions_are_in_the_models_float16() -> Iterator[None]:
    """A model that computes in float16 counts its positions in it."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        counted = positions.clamp(max=65504).half().long() if x.dtype == torch.float16 else positions
        return forward(module, x, counted)

    with rotary(change):
        yield


@fault("POS-1", TABLES, "test_model_tables and llama-gqa and bfloat16", source="our own", unseen="float32 models")
def tables_are_computed_in_the_models_dtype() -> Iterator[None]:
    """Positions and angles of a bfloat16 model are bfloat16."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        angles = positions[..., None].to(x.dtype) * module.inv_freq.to(x.device, x.dtype)
        table = torch.cat([angles, angles], -1)
        return table.cos(), table.sin()

    with rotary(change):
        yield


@contextmanager
def rotation(change: Callable[..., tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Patch what Llama does with its tables. change(apply, q, k, cos, sin) -> q, k."""
    from transformers.models.llama import modeling_llama

    original = modeling_llama.apply_rotary_pos_emb

    def patched(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **more: Any) -> Any:
        return change(original, q, k, cos, sin)

    with swapped(modeling_llama, "apply_rotary_pos_emb", patched):
        yield


@fault("POS-4", *TURNED, source="our own", unseen="position 0")
def neighbours_are_turned_in_place_of_halves() -> Iterator[None]:
    """Dimension 2i is paired with 2i + 1, as GPT-J does, in a model that was trained with i and i + d/2."""

    def change(apply: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        def halves(x: Tensor) -> Tensor:
            return torch.cat([x[..., ::2], x[..., 1::2]], -1)

        def neighbours(x: Tensor) -> Tensor:
            first, second = x.chunk(2, -1)
            return torch.stack([first, second], -1).flatten(-2)

        return tuple(map(neighbours, apply(halves(q), halves(k), cos, sin)))

    with rotation(change):
        yield


@fault("POS-4", *TURNED, source="our own", unseen="position 0")
def the_slowest_pairs_are_not_turned() -> Iterator[None]:
    """A quarter of the frequencies is dropped, as p-RoPE would have it."""

    def change(apply: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        still = torch.arange(cos.shape[-1], device=cos.device) % (cos.shape[-1] // 2) >= 3 * cos.shape[-1] // 8
        return apply(q, k, cos.masked_fill(still, 1), sin.masked_fill(still, 0))

    with rotation(change):
        yield


@fault("POS-4", *TURNED, source="our own", unseen="position 0")
def rotation_does_not_keep_norms() -> Iterator[None]:
    """The second half takes the sine with the wrong sign: a shear, not a rotation."""

    def change(apply: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        half = cos.shape[-1] // 2
        return apply(q, k, cos, torch.cat([sin[..., :half], -sin[..., half:]], -1))

    with rotation(change):
        yield


@fault("POS-3", "positions/test_shift.py", "llama-gqa", source="our own", unseen="tables and keys alone")
def keys_are_turned_one_position_late() -> Iterator[None]:
    """Queries stand one position before their keys."""

    def change(apply: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        late = [torch.cat([t[:, 1:], t[:, -1:]], 1) for t in (cos, sin)]
        return apply(q, k, cos, sin)[0], apply(q, k, *late)[1]

    with rotation(change):
        yield


@fault(
    "POS-5",
    DECLARED,
    "checkpoint and float32 and rope-llama3",
    source="https://github.com/sbryngelson/ANEForge/pull/58",
    unseen="models whose base is 10,000",
)
def rope_theta_is_lost_in_loading() -> Iterator[None]:
    """A checkpoint's base is read, and 10,000 used."""

    def change(model: Any) -> None:
        table = model.model.rotary_emb.inv_freq
        table.copy_(1 / 10000 ** (torch.arange(len(table), device=table.device) / len(table)))

    with after_loading(change):
        yield


@fault(
    "POS-5",
    DECLARED,
    "older_words and rope-llama3",
    source="our own: a key that is read where the other is not there",
    unseen="configs in the words of transformers 5, or without a scaling; a base of 10,000",
)
def base_beside_a_scaling_is_lost() -> Iterator[None]:
    """Where config.json has rope_theta beside rope_scaling, the base is the architecture's default."""
    from transformers.modeling_rope_utils import RotaryEmbeddingConfigMixin

    original = RotaryEmbeddingConfigMixin.convert_rope_params_to_dict

    def convert(self: Any, **keywords: Any) -> Any:
        if keywords.get("rope_scaling"):
            keywords["rope_theta"] = self.default_theta
        return original(self, **keywords)

    with swapped(RotaryEmbeddingConfigMixin, "convert_rope_params_to_dict", convert):
        yield


@fault(
    "POS-5",
    DECLARED,
    "older_words and rope-linear",
    source="our own: only the newer of two words is known",
    unseen="configs that were written by transformers 4.43 or later, or without a scaling",
)
def type_is_not_read() -> Iterator[None]:
    """A scaling whose kind stands under the older word `type` is taken for none."""
    from transformers.modeling_rope_utils import RotaryEmbeddingConfigMixin

    original = RotaryEmbeddingConfigMixin.standardize_rope_params

    def standardize(self: Any) -> Any:
        p = getattr(self, "rope_parameters", None) or {}
        if "type" in p:
            p.setdefault("rope_type", "default")
        return original(self)

    with swapped(RotaryEmbeddingConfigMixin, "standardize_rope_params", standardize):
        yield


@fault("POS-5", DECLARED, "empty and float32 and rope-yarn", source="our own", unseen="from_pretrained")
def tables_are_what_memory_held() -> Iterator[None]:
    """A model that is built empty and then handed its weights has no frequencies: they are in no file."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.load_state_dict

    def load_state_dict(self: Any, *args: Any, **more: Any) -> Any:
        found = original(self, *args, **more)
        for name, buffer in self.named_buffers():
            if name.endswith("inv_freq"):
                buffer.zero_()
        return found

    with swapped(PreTrainedModel, "load_state_dict", load_state_dict):
        yield


@fault(
    "POS-5",
    DECLARED,
    "checkpoint and float32 and rope-layers",
    source="our own",
    unseen="models whose layers share a base",
)
def layers_with_a_window_take_the_others_base() -> Iterator[None]:
    """One table for all types of layer."""

    def change(model: Any) -> None:
        rotary_emb, local = model.model.rotary_emb, getattr(model.model, "rotary_emb_local", None)
        if local is None:
            rotary_emb.sliding_attention_inv_freq.copy_(rotary_emb.full_attention_inv_freq)
        else:
            local.inv_freq.copy_(rotary_emb.inv_freq)

    with after_loading(change):
        yield
