"""Faults of loading: what is in memory is not what was released."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from suites.meta.faults import after_loading, fault

SERVED = ("weights/test_release.py", "float32")


@fault("WEIGHTS-1", *SERVED, source="https://github.com/paiml/aprender/issues/555", unseen="tokens that miss the row")
def one_bit_is_flipped() -> Iterator[None]:
    """The lowest mantissa bit of one weight."""

    def change(model: Any) -> None:
        bits = model.model.layers[7].mlp.down_proj.weight.data.view(torch.int32)
        bits[11, 13] ^= 1

    with after_loading(change):
        yield


@fault("WEIGHTS-1", *SERVED, source="our own: the reordering that GGUF needs, forgotten", unseen="position 0")
def rotated_pairs_are_not_reordered() -> Iterator[None]:
    """Keys of one layer stay in GGUF's order, pairs side by side."""

    def change(model: Any) -> None:
        weight = model.model.layers[0].self_attn.k_proj.weight.data
        size = model.config.head_dim or 64
        pairs = weight.view(-1, 2, size // 2, weight.shape[1]).transpose(1, 2)
        weight.copy_(pairs.reshape(weight.shape).clone())

    with after_loading(change):
        yield


@fault(
    "WEIGHTS-1",
    "weights/test_release.py",
    "bfloat16",
    source="our own: a cast that drops bits",
    unseen="weights that bfloat16 holds exactly",
)
def conversion_truncates() -> Iterator[None]:
    """Weights are cut to bfloat16, not rounded: the smallest step towards zero, everywhere."""

    def change(model: Any) -> None:
        for parameter in model.parameters():
            if parameter.dtype == torch.bfloat16 and parameter.dim() > 1:
                bits = parameter.data.view(torch.int16)
                bits[0] -= 1  # one unit in the last place, in one row

    with after_loading(change):
        yield
