"""A backend that reads no hidden slot: no built-in one on a CPU keeps that promise. `-p suites.meta.faults.careful`."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def keys(tensor: Tensor, hidden: Tensor) -> Tensor:
    """Keys, those in hidden slots zero."""
    return tensor.masked_fill(hidden, 0)


def values(tensor: Tensor, hidden: Tensor) -> Tensor:
    """Values, those in hidden slots zero."""
    return tensor.masked_fill(hidden, 0)


def call(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """torch's attention, after slots that nobody sees are cleared."""
    if mask is not None:
        hidden = ~mask.any(-2)[:, :1, :, None]
        k, v = keys(k, hidden), values(v, hidden)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def pytest_spiritlevel_attention(register: Callable[..., None]) -> None:
    register("careful", call=call, takes={"gqa", "mask"})
