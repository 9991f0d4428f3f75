"""Faults of engagement: another kernel answers than the one that was asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from suites.meta.faults import fault, patches, swapped

FILE = "attention/test_engagement.py"


@fault(
    "ATTN-17",
    FILE,
    "sdpa-flash-cpu-float32 and shared-heads-100",
    source="our own: a context that is entered too late",
    unseen="any look at the numbers: MATH is right",
)
def flash_falls_back_to_math() -> Iterator[None]:
    """Flash attention is asked for, and MATH answers without a word."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault(
    "ATTN-17",
    FILE,
    "flex-float32 and prefill-256",
    source="https://github.com/vllm-project/vllm/issues/27178",
    unseen="any look at the numbers: what runs unfused is bit-equal to eager",
)
def flex_runs_unfused() -> Iterator[None]:
    """Dynamo has given up on flex_attention after too many shapes, and runs it as it is written."""
    with swapped(torch, "compile", lambda function, **how: function), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without")  # torch says so, once a process
        yield
