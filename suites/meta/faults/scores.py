"""Faults of scores: their maximum, their scale, their soft-cap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, patches

ACCURATE = "attention/test_accuracy.py"
LEVELS = ("attention/test_range.py", "at_any_level and sdpa-float32")
SCALES = ("attention/test_range.py", "act_once and sdpa-float32")
CAPS = ("attention/test_range.py", "act_once and eager-float32 and softcap")


def _divided(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


@fault("ATTN-9", *LEVELS, source="our own: an accumulator that starts at 0, not at -inf", unseen="a score above 0")
def maximum_starts_at_zero() -> Iterator[None]:
    """The running maximum of the scores starts at 0: where all are far below, every weight underflows."""
    with patches.softmax(
        lambda scores, seen: _divided(
            (scores - scores.masked_fill(~seen, -torch.inf).amax(-1, keepdim=True).clamp(min=0)).exp() * seen
        )
    ):
        yield


@fault("ATTN-9", *LEVELS, source="our own: softmax as in the formula", unseen="scores below 88")
def maximum_is_not_subtracted() -> Iterator[None]:
    """Scores are exponentiated as they are: large ones overflow."""
    with patches.softmax(lambda scores, seen: _divided(scores.exp() * seen)):
        yield


@fault("ATTN-9", *LEVELS, source="our own: a rescaling left out", unseen="rows whose maximum is in the first tile")
def maximum_is_that_of_the_first_tile() -> Iterator[None]:
    """The maximum is not updated after the first 64 keys: later ones overflow."""
    with patches.softmax(
        lambda scores, seen: _divided(
            torch.where(
                seen, (scores - scores[..., :64].masked_fill(~seen[..., :64], -torch.inf).amax(-1, True)), -torch.inf
            ).exp()
        )
    ):
        yield


@fault(
    "ATTN-10",
    *SCALES,
    source="https://github.com/huggingface/transformers/pull/44397",
    unseen="a scale of 1/sqrt(head_dim)",
)
def scale_that_is_given_is_ignored() -> Iterator[None]:
    """The kernel scales by 1/sqrt(head_dim), whatever it is told."""
    with patches.kernel(lambda call, q, k, v, **more: call(q, k, v, **more | {"scale": None})):
        yield


@fault("ATTN-10", *SCALES, source="our own: a scale that is split between q and k, once too often", unseen="scale 1")
def scale_is_applied_to_queries_and_keys() -> Iterator[None]:
    """The scale that is given is applied to the queries, and to the keys again."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return call(q, k if more.get("scale") is None else k * more["scale"], v, **more)

    with patches.kernel(change):
        yield


def _capped(change: Callable[[Tensor, float, float], Tensor], late: bool = False) -> AbstractContextManager[None]:
    """Gemma 2's eager attention with change(unscaled scores, scale, cap) -> scores, before the mask, or after it."""

    def own(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scale, cap = more["scaling"], more["softcap"]
        hidden = 0.0 if mask is None else mask
        scores = change(q @ k.mT + hidden, scale, cap) if late else change(q @ k.mT, scale, cap) + hidden
        weights = torch.softmax(scores.float(), -1).to(q.dtype)
        return (weights @ v).transpose(1, 2).contiguous(), weights

    return patches.eager(own, "gemma2")


def _cap(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap)


@fault("ATTN-10", *CAPS, source="our own: one in the model, one in the kernel", unseen="scores far below the cap")
def softcap_acts_twice() -> Iterator[None]:
    """Scores that were capped are capped again."""
    with _capped(lambda scores, scale, cap: _cap(_cap(scores * scale, cap), cap)):
        yield


@fault("ATTN-10", *CAPS, source="our own: scale fused into the exponent", unseen="scale 1")
def softcap_acts_before_the_scale() -> Iterator[None]:
    """Scores are capped first, and scaled then."""
    with _capped(lambda scores, scale, cap: _cap(scores, cap) * scale):
        yield


@fault("ATTN-10", *CAPS, source="https://github.com/onnx/onnx/issues/7865", unseen="calls that show every key")
def softcap_acts_after_the_mask() -> Iterator[None]:
    """The mask is added before the cap: a hidden key's score is -cap, and it is seen."""
    with _capped(lambda scores, scale, cap: _cap(scores * scale, cap), late=True):
        yield


@fault(
    "ATTN-10", *CAPS, source="https://github.com/sgl-project/sgl-kernel-xpu/pull/491", unseen="scores far below the cap"
)
def softcap_is_dropped() -> Iterator[None]:
    """The kernel takes a soft-cap, and does nothing with it."""
    with _capped(lambda scores, scale, cap: scores * scale):
        yield


@fault(
    "ATTN-10", *CAPS, source="https://github.com/unslothai/unsloth-zoo/pull/593", unseen="nothing: scores of any size"
)
def softcap_multiplies_the_score() -> Iterator[None]:
    """The score, and not the cap, is multiplied by tanh(score / cap): above the cap nothing is capped."""
    with _capped(lambda scores, scale, cap: scores * scale * torch.tanh(scores * scale / cap)):
        yield


@fault(
    "ATTN-1",
    ACCURATE,
    "sdpa-float32 and decode-scale",
    source="our own: a scale that is compiled in",
    unseen="prompts; 1/sqrt(d)",
)
def scale_of_a_step_is_the_default() -> Iterator[None]:
    """While decoding, scores are scaled by 1/sqrt(d), whatever was asked for."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return call(q, k, v, **more | ({"scale": None} if q.shape[2] == 1 else {}))

    with patches.kernel(change):
        yield


@fault("ATTN-1", ACCURATE, "eager-float32 and decode-softcap", source="our own: a second kernel", unseen="prompts")
def softcap_is_for_prompts_alone() -> Iterator[None]:
    """While decoding, no score is capped."""

    def change(call: Any, module: Any, q: Tensor, *args: Any, **more: Any) -> Any:
        return call(module, q, *args, **more | ({"softcap": None} if q.shape[2] == 1 else {}))

    with patches.eager(change, "gemma2"):
        yield
