"""Faults of ways to ask a model: by embeddings, in packed texts, for hidden states, for chosen positions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from suites.meta.faults import fault, patches, swapped

ASKED = "attention/test_model_logits.py"


@fault(
    "ATTN-2",
    ASKED,
    "way_of_asking and packed-float32-llama-gqa",
    source="https://github.com/axolotl-ai-cloud/axolotl/pull/3796, before it",
    unseen="one text a row; requests with a mask",
)
def packed_texts_see_each_other() -> Iterator[None]:
    """Positions that begin again are not seen, and a packed text attends to those before it."""
    from transformers import masking_utils

    with swapped(masking_utils, "find_packed_sequence_indices", lambda position_ids: None):
        yield


@fault(
    "ATTN-2",
    ASKED,
    "way_of_asking and hidden-states-float32-llama-gqa",
    source="https://github.com/huggingface/transformers/pull/40994, before it",
    unseen="logits",
)
def hidden_states_lack_the_last_norm() -> Iterator[None]:
    """The last of the hidden states is handed out as it was before the final norm."""

    def forward(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        seen: list[Any] = []
        hook = model.norm.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        try:
            found = original(model, *args, **more)
        finally:
            hook.remove()
        if found.hidden_states:
            found.hidden_states = (*found.hidden_states[:-1], seen[-1])
        return found

    with patches.forward("LlamaModel", forward):
        yield


@fault(
    "ATTN-2",
    ASKED,
    "way_of_asking and kept-float32-llama-gqa",
    source="our own: how many, for which",
    unseen="the last positions; a count of them",
)
def positions_are_taken_for_their_number() -> Iterator[None]:
    """Logits are wanted of some positions, and computed of as many last ones."""

    def forward(original: Any, model: Any, *args: Any, logits_to_keep: Any = 0, **more: Any) -> Any:
        count = logits_to_keep if isinstance(logits_to_keep, int) else len(logits_to_keep)
        return original(model, *args, logits_to_keep=count, **more)

    with patches.forward("LlamaForCausalLM", forward):
        yield


@fault(
    "ATTN-2",
    ASKED,
    "way_of_asking and embeddings-float32-llama-gqa",
    source="our own: positions as patches of an image have them",
    unseen="requests with ids",
)
def embeddings_stand_apart() -> Iterator[None]:
    """What comes as embeddings has every second position."""

    def forward(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        given = more.get("inputs_embeds")
        if given is not None and more.get("input_ids") is None:
            more["position_ids"] = 2 * torch.arange(given.shape[1], device=given.device)[None]
        return original(model, *args, **more)

    with patches.forward("LlamaModel", forward):
        yield


@fault(
    "KV-14",
    "kv_cache/test_generate.py",
    "first_token and llama-gqa",
    source="https://github.com/ollama/ollama/issues/10368",
    unseen="prompts of up to 2,048 tokens",
)
def long_prompts_lose_their_beginning() -> Iterator[None]:
    """Of a prompt of more than 2,048 tokens `generate` reads the last 2,048."""

    def change(original: Any, model: Any, ids: Any, **more: Any) -> Any:
        kept = more | {"attention_mask": more["attention_mask"][:, -2048:]}
        found = original(model, ids[:, -2048:], **kept)
        found.sequences = torch.cat([ids[:, :-2048], found.sequences], 1)
        return found

    with patches.generation("generate", change):
        yield
