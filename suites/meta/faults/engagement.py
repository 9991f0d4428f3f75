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
CHOICE = (FILE, "own_choice and float32")


@fault(
    "ATTN-17",
    FILE,
    "(sdpa-flash-cpu-float32 or sdpa-flash-bfloat16) and shared-heads-100",
    source="our own: a context that is entered too late",
    unseen="any look at the numbers: MATH is right",
)
def flash_falls_back_to_math() -> Iterator[None]:
    """Flash attention is asked for, and MATH answers without a word."""
    with patches.kernel(patches.math_answers):
        yield


@fault(
    "ATTN-17",
    FILE,
    "(sdpa-flash-cpu-float32 or sdpa-flash-bfloat16) and prefill-256",
    source="our own: a dispatcher that splits a batch",
    unseen="a look for the right kernel alone: it runs",
)
def half_of_the_batch_falls_back_to_math() -> Iterator[None]:
    """A batch is split, and only its first half is given to the kernel that was asked for."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        half = (len(q) + 1) // 2
        with sdpa_kernel(SDPBackend.MATH):
            rest = call(q[half:], k[half:], v[half:], **more)
        return torch.cat([call(q[:half], k[:half], v[:half], **more), rest])

    with patches.kernel(change):
        yield


@fault(
    "ATTN-19", *CHOICE, source="our own: a line of a debugging session", unseen="a backend that is asked for by name"
)
def fused_kernels_are_switched_off() -> Iterator[None]:
    """Somebody has switched the fused kernels off for the whole process."""
    flags = torch.backends.cuda
    switches = {
        flags.enable_flash_sdp: flags.flash_sdp_enabled(),
        flags.enable_mem_efficient_sdp: flags.mem_efficient_sdp_enabled(),
        flags.enable_cudnn_sdp: flags.cudnn_sdp_enabled(),
    }
    for switch in switches:
        switch(False)
    try:
        yield
    finally:
        for switch, before in switches.items():
            switch(before)


@fault("ATTN-19", *CHOICE, source="our own: a context that is never left", unseen="a backend that is asked for by name")
def math_context_is_never_left() -> Iterator[None]:
    """A request that failed half-way has left sdpa_kernel(MATH) open."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@fault(
    "ATTN-17",
    FILE,
    "flex and shared-heads-100",
    source="https://github.com/vllm-project/vllm/issues/27178",
    unseen="any look at the numbers: what runs unfused is bit-equal to eager",
)
def flex_runs_unfused() -> Iterator[None]:
    """Dynamo has given up on flex_attention after too many shapes, and runs it as it is written."""
    with swapped(torch, "compile", lambda function, **how: function), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without")  # torch says so, once a process
        yield
