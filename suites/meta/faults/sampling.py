"""Faults of sampling: settings that are not applied, or otherwise, and draws that are not drawn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, patches, swapped

SCORES = "kv_cache/test_sampling.py", "scores and llama-gqa"
PADDED = "kv_cache/test_sampling.py", "padded_rows and llama-gqa"
DRAFTED = "kv_cache/test_sampling.py", "drafted and own-draft"
SURE = "kv_cache/test_sampling.py", "drafted and sure-draft"
TOGETHER = "kv_cache/test_sampling.py", "requests_of_a_batch and paged-sdpa-llama-gqa"
ENDS = "attention/test_paged.py", "any_of_its_ends and paged-sdpa-llama-gqa"
DRAWN = "kv_cache/test_sampling.py", "drawn_by_themselves and plain and llama-gqa"


def _processor(kind: str, call: Any) -> AbstractContextManager[None]:
    """One of transformers' processors of scores calls something else: call(itself, ids, scores)."""
    from transformers.generation import logits_process

    return swapped(getattr(logits_process, kind), "__call__", lambda itself, ids, scores: call(itself, ids, scores))


def _drawn(draw: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
    """One token of each row of probabilities is drawn otherwise."""
    original = torch.multinomial

    def multinomial(weights: Tensor, *args: Any, **more: Any) -> Tensor:
        return draw(weights) if weights.ndim > 1 else original(weights, *args, **more)

    return swapped(torch, "multinomial", multinomial)


def _penalised(divides: Any, itself: Any, ids: Tensor, scores: Tensor) -> Tensor:
    said = scores.gather(-1, ids)
    penalised = torch.where(divides(said), said / itself.penalty, said * itself.penalty)
    return scores.scatter(-1, ids, penalised)


@fault("KV-25", *SCORES, source="huggingface/transformers#2303, before it", unseen="logits above 0; no penalty")
def repetition_penalty_divides_every_logit() -> Iterator[None]:
    """A negative logit of what was said is divided too, which makes it likelier."""

    def call(itself: Any, ids: Tensor, scores: Tensor) -> Tensor:
        return _penalised(torch.isfinite, itself, ids, scores)

    with _processor("RepetitionPenaltyLogitsProcessor", call):
        yield


@fault("KV-25", *SCORES, source="https://github.com/vllm-project/vllm/pull/1424, before it", unseen="no penalty")
def repetition_penalty_forgets_the_prompt() -> Iterator[None]:
    """Only what was answered is penalised."""
    lengths: dict[int, int] = {}

    def call(itself: Any, ids: Tensor, scores: Tensor) -> Tensor:
        answer = ids[:, lengths.setdefault(id(itself), ids.shape[1]) :]
        return _penalised(lambda said: said > 0, itself, answer, scores)

    with _processor("RepetitionPenaltyLogitsProcessor", call):
        yield


@fault(
    "KV-25",
    *PADDED,
    source="https://github.com/huggingface/text-generation-inference/pull/1765, before it",
    unseen="rows without padding; padding with a token that was said",
)
def padding_is_penalised() -> Iterator[None]:
    """The token that stands in padding counts as said: where it also ends answers, a padded row is late to end."""
    with _processor("RepetitionPenaltyLogitsProcessor", partial(_penalised, lambda said: said > 0)):
        yield


@fault("KV-25", *SCORES, source="https://github.com/fishaudio/fish-speech/pull/1171, before it", unseen="no top_p")
def nucleus_lacks_its_last_token() -> Iterator[None]:
    """The token with which the sum reaches top_p is left out."""

    def call(itself: Any, ids: Tensor, scores: Tensor) -> Tensor:
        ordered, order = scores.sort(-1, descending=True)
        out = ordered.softmax(-1).cumsum(-1) > itself.top_p
        out[:, 0] = False
        return scores.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)

    with _processor("TopPLogitsWarper", call):
        yield


@fault("KV-25", *SCORES, source="https://github.com/abetlen/llama-cpp-python/issues/911", unseen="no min_p")
def min_p_is_not_applied() -> Iterator[None]:
    """Nothing is left out for being unlikely."""
    with _processor("MinPLogitsWarper", lambda itself, ids, scores: scores):
        yield


@fault("KV-25", *SCORES, source="https://github.com/ggml-org/llama.cpp/pull/3841, before it", unseen="temperature 1")
def temperature_comes_last() -> Iterator[None]:
    """What stays is chosen at temperature 1, and drawn at the one that was asked for."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        processors = original(model, *args, **more)
        processors.sort(key=lambda processor: type(processor).__name__ == "TemperatureLogitsWarper")
        return processors

    with patches.generation("_get_logits_processor", change):
        yield


@fault("KV-25", *DRAWN, source="https://github.com/vllm-project/vllm/issues/10852", unseen="batches of one")
def rows_are_drawn_with_one_number() -> Iterator[None]:
    """One random number a step serves all rows: answers to one prompt are one answer."""

    def draw(weights: Tensor) -> Tensor:
        number = torch.rand(1, 1, device=weights.device, dtype=torch.float64).repeat(len(weights), 1)
        return torch.searchsorted(weights.double().cumsum(-1), number).clamp(max=weights.shape[-1] - 1)

    with _drawn(draw):
        yield


@fault("KV-25", *DRAWN, source="our own: a seed by default", unseen="the first request")
def every_request_has_the_same_seed() -> Iterator[None]:
    """A request that names no seed is drawn with the seed 0."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        torch.manual_seed(0)
        return original(model, *args, **more)

    with patches.generation("generate", change):
        yield


@fault("KV-25", *DRAFTED, source="https://github.com/EricLBuehler/mistral.rs/pull/2424, before it", unseen="no drafts")
def drafted_answers_are_what_is_ranked_first() -> Iterator[None]:
    """Where tokens are drafted, what is checked is what is ranked first, whatever the temperature."""

    def change(original: Any, model: Any, *args: Any, generation_config: Any, **more: Any) -> Any:
        config = copy.deepcopy(generation_config)
        config.do_sample = False
        return original(model, *args, generation_config=config, **more)

    with patches.generation("_assisted_decoding", change):
        yield


@fault(
    "KV-25",
    *SURE,
    source="https://github.com/SafeAILab/EAGLE/issues/329",
    unseen="drafts that are never refused, or are unlikely wherever the model is sure",
)
def refused_drafts_are_drawn_anew_from_all() -> Iterator[None]:
    """In place of a refused draft a token is drawn as if none had been: what is drafted comes too often."""
    from transformers.generation import utils

    original = utils._speculative_sampling

    def sampling(ids: Tensor, drafted: Tensor, count: int, logits: Tensor, *args: Any, **more: Any) -> Any:
        tokens, accepted = original(ids, drafted, count, logits, *args, **more)
        if accepted < count:
            tokens[:, -1] = torch.multinomial(logits[:, accepted].softmax(-1), 1)[:, 0]
        return tokens, accepted

    with swapped(utils, "_speculative_sampling", sampling):
        yield


@fault(
    "KV-25",
    *TOGETHER,
    source="https://github.com/huggingface/transformers/pull/40692, before it",
    unseen="requests that are not sampled",
)
def batched_requests_are_answered_greedily() -> Iterator[None]:
    """Continuous batching answers with what is ranked first, whatever do_sample says."""

    def change(original: Any, model: Any, inputs: Any, *args: Any, generation_config: Any, **more: Any) -> Any:
        config = copy.deepcopy(generation_config)
        config.do_sample = False
        return original(model, inputs, *args, generation_config=config, **more)

    with patches.generation("generate_batch", change):
        yield


@fault("ATTN-18", *ENDS, source="our own: one end of the several that a release names", unseen="releases with one end")
def batched_answers_end_with_the_first_end_alone() -> Iterator[None]:
    """Continuous batching knows one token that ends an answer."""

    def change(original: Any, model: Any, inputs: Any, *args: Any, generation_config: Any, **more: Any) -> Any:
        config = copy.deepcopy(generation_config)
        if isinstance(config.eos_token_id, list):
            config.eos_token_id = config.eos_token_id[0]
        return original(model, inputs, *args, generation_config=config, **more)

    with patches.generation("generate_batch", change):
        yield
