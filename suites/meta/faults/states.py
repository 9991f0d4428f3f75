"""Faults of what a model hands out beside its logits: hidden states, weights of attention, a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from suites.meta.faults import fault, patches, swapped

FILE = "attention/test_model_logits.py"
STATES = (FILE, "states_of_each and llama-gqa")


def _handed(name: str, change: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]) -> AbstractContextManager[None]:
    """Llama's model hands out something else under a name, where it is asked for it."""

    def model(original: Any, self: Any, *args: Any, **more: Any) -> Any:
        found = original(self, *args, **more)
        if getattr(found, name, None):
            setattr(found, name, change(getattr(found, name)))
        return found

    return patches.forward("LlamaForCausalLM", model)


@fault(
    "ATTN-2",
    *STATES,
    source="our own: a residual that is added in place, after it was handed out",
    unseen="the last hidden states; logits",
)
def hidden_states_are_of_the_layer_after() -> Iterator[None]:
    """Each layer's input is handed out as it is after the layer."""
    with _handed("hidden_states", lambda held: (*held[1:-1], held[-2], held[-1])):
        yield


@fault("ATTN-2", *STATES, source="our own: a list that begins behind the first layer", unseen="the last hidden states")
def embeddings_are_left_out_of_hidden_states() -> Iterator[None]:
    """Hidden states begin with what the first layer made, and end with the last twice."""
    with _handed("hidden_states", lambda held: (*held[1:], held[-1])):
        yield


@fault("ATTN-2", *STATES, source="our own: one buffer for all layers", unseen="models of one layer; logits")
def weights_are_those_of_the_last_layer() -> Iterator[None]:
    """Attention's weights are the last layer's, whichever layer is looked at."""
    with _handed("attentions", lambda held: held[-1:] * len(held)):
        yield


@fault("ATTN-2", *STATES, source="our own: one map for each key head", unseen="as many key heads as heads; logits")
def weights_are_the_mean_of_a_group() -> Iterator[None]:
    """Heads that share a key head hand out the mean of their weights; what is computed is right."""

    def mean(weights: Tensor) -> Tensor:
        return weights.unflatten(1, (-1, 2)).mean(2).repeat_interleave(2, 1)

    with _handed("attentions", lambda held: tuple(map(mean, held))):
        yield


@fault(
    "ATTN-2",
    FILE,
    "loss_is_of and llama-gqa",
    source="our own: a sum that is divided by all tokens",
    unseen="texts of which every token has a label",
)
def loss_is_divided_by_all_tokens() -> Iterator[None]:
    """A loss is divided by the number of all tokens, those without a label too."""
    from transformers.loss import loss_utils

    def mean(source: Tensor, target: Tensor, *args: Any, ignore_index: int = -100, **more: Any) -> Tensor:
        return F.cross_entropy(source, target, ignore_index=ignore_index, reduction="sum") / target.numel()

    with swapped(loss_utils, "fixed_cross_entropy", mean):
        yield


@fault(
    "ATTN-2",
    FILE,
    "same_in_every_way and embeddings and llama-gqa",
    source="vLLM's fused_add_rms_norm, which works in place",
    unseen="tokens; embeddings that are handed over once",
)
def embeddings_are_written_to() -> Iterator[None]:
    """The first layer adds to the embeddings of whoever handed them over."""

    def layer(original: Any, self: Any, hidden_states: Tensor, *args: Any, **more: Any) -> Any:
        found = original(self, hidden_states, *args, **more)
        if self.self_attn.layer_idx == 0 and not torch.is_grad_enabled():
            hidden_states.copy_(found if isinstance(found, Tensor) else found[0])
        return found

    with patches.forward("LlamaDecoderLayer", layer):
        yield
