"""Faults of positions that are added: ALiBi's biases inside models, learned and sinusoidal tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import after_loading, fault, swapped
from suites.meta.faults.positions import bloom_bias

ALIBI = "positions/test_tables.py"
WAYS = "positions/test_alibi.py"
ABSOLUTE = "positions/test_absolute.py"


@fault("POS-2", ALIBI, "alibi-bloom", source="our own", unseen="counts of heads that are powers of two")
def slopes_are_one_series_for_any_count_of_heads() -> Iterator[None]:
    """2**(-8h/n) for every n, where the authors' code interleaves two series."""
    from transformers.models.bloom import modeling_bloom

    def build(mask: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
        slopes = torch.tensor([2 ** (-8 * h / heads) for h in range(1, heads + 1)], device=mask.device)
        places = ((mask.cumsum(-1) - 1) * mask)[:, None, :]
        return (slopes[:, None] * places).reshape(len(mask) * heads, 1, -1).to(dtype)

    with swapped(modeling_bloom, "build_alibi_tensor", build):
        yield


@fault("POS-2", ALIBI, "alibi-mpt", source="our own", unseen="counts of heads that are powers of two")
def the_second_series_of_slopes_starts_one_late() -> Iterator[None]:
    """The remaining heads take the slopes between those that they should."""
    from transformers.models.mpt import modeling_mpt

    def build(heads: int, length: int, alibi_bias_max: int = 8, device: Any = None) -> Tensor:
        below = 2 ** math.floor(math.log2(heads))
        exponents = [alibi_bias_max * h / below for h in range(1, below + 1)]
        exponents += [alibi_bias_max * h / (2 * below) for h in range(2, 2 * (heads - below) + 1, 2)]
        slopes = torch.tensor([2.0**-e for e in exponents], device=device)
        return slopes[:, None, None] * torch.arange(1 - length, 1, device=device)

    with swapped(modeling_mpt, "build_mpt_alibi_tensor", build):
        yield


@fault("POS-2", ALIBI, "alibi-bloom", source="our own", unseen="distances below 65,536")
def distances_wrap_at_sixteen_bits() -> Iterator[None]:
    """Positions are kept in 16 bits."""
    from transformers.models.bloom import modeling_bloom

    original = modeling_bloom.build_alibi_tensor

    def build(mask: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
        bias = original(mask, heads, dtype).reshape(len(mask), heads, -1)
        places = (mask.cumsum(-1) - 1).long()[:, None]
        return (bias / places.clamp(min=1) * (places % 2**16)).reshape(len(mask) * heads, 1, -1)

    with swapped(modeling_bloom, "build_alibi_tensor", build):
        yield


@fault("POS-7", WAYS, "bloom-alibi and float32 and left", source="our own", unseen="rows without padding")
def a_padded_batch_has_no_bias() -> Iterator[None]:
    """The bias is dropped where a mask hides something."""
    with bloom_bias(lambda bias, mask: bias if mask.bool().all() else bias * 0):
        yield


@fault(
    "POS-7",
    WAYS,
    "bloom-alibi and float32 and step",
    source="https://github.com/huggingface/transformers/issues/29067",
    unseen="prompts",
)
def a_cached_step_has_no_bias() -> Iterator[None]:
    """The bias is built for prompts, and forgotten where one token follows."""
    from transformers.models.bloom.modeling_bloom import BloomAttention

    original = BloomAttention.forward

    def forward(self: Any, hidden_states: Tensor, residual: Tensor, alibi: Tensor, *args: Any, **more: Any) -> Any:
        kept = alibi * (hidden_states.shape[1] > 1)
        return original(self, hidden_states, residual, kept, *args, **more)

    with swapped(BloomAttention, "forward", forward):
        yield


@fault(
    "POS-7",
    WAYS,
    "bloom-alibi and float32",
    source="https://github.com/huggingface/transformers/pull/17866",
    unseen="distances below 256",
)
def a_models_bias_is_rounded_to_bfloat16() -> Iterator[None]:
    """The bias of a float32 model is formed in bfloat16."""
    with bloom_bias(lambda bias, mask: bias.bfloat16().to(bias.dtype)):
        yield


@contextmanager
def looked_up(change: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
    """Patch how models of GPT-BigCode look up their positions. change(positions, rows) -> positions."""

    def hook(model: Any) -> None:
        table = model.transformer.wpe
        table.register_forward_pre_hook(lambda module, args: (change(args[0], module.num_embeddings),))

    with after_loading(hook):
        yield


@fault("POS-8", ABSOLUTE, "learned and bigcode-mqa", source="our own: OPT's two reserved rows", unseen="one row's text")
def a_learned_table_is_read_one_row_late() -> Iterator[None]:
    """A reserved row at the start of the table is forgotten."""
    with looked_up(lambda positions, rows: (positions + 1).clamp(max=rows - 1)):
        yield


@fault("POS-8", ABSOLUTE, "learned and bigcode-mqa", source="our own", unseen="positions below 257")
def learned_positions_are_rounded_to_bfloat16() -> Iterator[None]:
    """Position 257 takes the row of 256."""
    with looked_up(lambda positions, rows: positions.bfloat16().long().clamp(max=rows - 1)):
        yield


@fault("POS-8", ABSOLUTE, "learned and bigcode-mqa", source="our own", unseen="rows that bfloat16 holds exactly")
def a_learned_table_is_rounded_in_loading() -> Iterator[None]:
    """The table goes through bfloat16 on its way into a float32 model."""

    def change(model: Any) -> None:
        table = model.transformer.wpe.weight.data
        table.copy_(table.bfloat16().to(table.dtype))

    with after_loading(change):
        yield


FULL = ("--tier", "full")


@fault(
    "POS-8", ABSOLUTE, "sinusoidal_positions", options=FULL, source="our own", unseen="models with learned positions"
)
def sines_and_cosines_take_turns() -> Iterator[None]:
    """Sine and cosine of a frequency stand side by side, as the paper writes it and fairseq does not."""
    from transformers.models.xglm.modeling_xglm import XGLMSinusoidalPositionalEmbedding

    original = XGLMSinusoidalPositionalEmbedding.forward

    def forward(self: Any, *args: Any, **more: Any) -> Tensor:
        first, second = original(self, *args, **more).chunk(2, -1)
        return torch.stack([first, second], -1).flatten(-2)

    with swapped(XGLMSinusoidalPositionalEmbedding, "forward", forward):
        yield


@fault(
    "POS-9",
    ABSOLUTE,
    "past and bigcode-mqa",
    source="https://github.com/facebookresearch/xformers/pull/66",
    unseen="texts that fit the table",
)
def positions_past_the_end_take_the_last_row() -> Iterator[None]:
    """A position that has no row is given the last one's."""
    with looked_up(lambda positions, rows: positions.clamp(max=rows - 1)):
        yield


@fault("POS-9", ABSOLUTE, "past and bigcode-mqa", source="our own", unseen="texts that fit the table")
def positions_past_the_end_start_again() -> Iterator[None]:
    """Positions are taken modulo the table's length."""
    with looked_up(lambda positions, rows: positions % rows):
        yield


@fault("POS-9", ABSOLUTE, "past and xglm", options=FULL, source="our own", unseen="texts that fit the table")
def a_sinusoidal_table_repeats_its_last_row() -> Iterator[None]:
    """A text that is longer than the table was built for reads its last row over and over."""
    from transformers.models.xglm.modeling_xglm import XGLMSinusoidalPositionalEmbedding

    original = XGLMSinusoidalPositionalEmbedding.forward

    def forward(self: Any, position_ids: Tensor, *args: Any, **more: Any) -> Tensor:
        end = vars(self).setdefault("end", len(self.weights) - self.offset)  # before the first text lets it grow
        return original(self, position_ids.clamp(max=end - 1), *args, **more)

    with swapped(XGLMSinusoidalPositionalEmbedding, "forward", forward):
        yield
