"""Faults of what `generate` hands out beside its answers: numbers that are not theirs, and another's cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from suites.meta.faults import fault, patches

FILE = "kv_cache/test_told.py"


@fault(
    "KV-25",
    FILE,
    "are_of_the_tokens and llama-gqa",
    source="our own: a list that is one step ahead",
    unseen="tokens",
)
def log_probabilities_are_of_the_token_before() -> Iterator[None]:
    """A step's log probability is that of the token that came before."""

    def change(original: Any, model: Any, sequences: Any, *args: Any, **more: Any) -> Any:
        return original(model, sequences.roll(1, 1), *args, **more)

    with patches.generation("compute_transition_scores", change):
        yield


@fault(
    "KV-25",
    FILE,
    "are_of_the_tokens and llama-gqa",
    source="vLLM's logprobs_mode, where raw ones are expected",
    unseen="requests without processors",
)
def logits_are_handed_out_processed() -> Iterator[None]:
    """What is handed out as logits of an answer are its scores."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        found = original(model, *args, **more)
        found.logits = found.scores
        return found

    with patches.generation("_sample", change):
        yield


@fault(
    "KV-15",
    FILE,
    "drafted_token and poor-draft and llama-gqa",
    source="our own: a slice that ends with the drafts",
    unseen="drafts that are all taken; tokens",
)
def logits_of_refused_drafts_are_handed_out() -> Iterator[None]:
    """Logits behind a draft that was refused are handed out, one token of an answer too early for all that follow."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        found = original(model, *args, **more)
        found.logits, found.scores = ((*steps[:1], steps[0], *steps[1:-1]) for steps in (found.logits, found.scores))
        return found

    with patches.generation("_assisted_decoding", change):
        yield


@fault(
    "KV-9",
    FILE,
    "scores_of_a_search and llama-gqa",
    source="our own: scores that are kept before they are divided",
    unseen="sequences; a length penalty of 0",
)
def score_of_a_search_lacks_its_length() -> Iterator[None]:
    """A hypothesis comes with the sum of its log probabilities, and not with what it was ranked by."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        found = original(model, *args, **more)
        lengths = (found.beam_indices >= 0).sum(-1)
        found.sequences_scores = found.sequences_scores * torch.pow(lengths, 2.0)
        return found

    with patches.generation("_beam_search", change):
        yield


@fault(
    "KV-11",
    "kv_cache/test_told.py",
    "handed_out_stays and llama-gqa",
    source="as transformers 4.57 does with static caches",
    unseen="caches that nobody goes on with",
)
def cache_that_was_handed_out_is_the_next_requests() -> Iterator[None]:
    """A cache that `generate` made and handed out holds what the next request writes."""
    last: list[Any] = []

    def change(original: Any, model: Any, config: Any, given: Any, *args: Any, **more: Any) -> Any:
        names = ("cache", "past_key_values")
        before = [given.get(name) for name in names]
        found = original(model, config, given, *args, **more)
        made = next((given[name] for name in names if given.get(name) is not None), None)
        if made is not None and not any(cache is made for cache in before):
            for cache in last:
                cache.layers = made.layers
            last[:] = [made]
        return found

    with patches.generation("_prepare_cache_for_generation", change):
        yield
