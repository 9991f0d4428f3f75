"""Faults of a request's settings: what is left out of logits or added to them, otherwise than it was asked or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import all_of, fault, patches, swapped

SAMPLING, PROCESSORS = "kv_cache/test_sampling.py", "kv_cache/test_processors.py"
BEAMS = PROCESSORS, "sees_each_text and llama-gqa and -beams"
DRAFTED = PROCESSORS, "sees_each_text and own-draft"
SEES = PROCESSORS, "sees_each_text and drawn-float32"
MAY = PROCESSORS, "says_what_it_may and beams"
DRAWN_BEAMS = PROCESSORS, "beams_are_drawn and drawn-beams"
SEED = PROCESSORS, "gives_its_answer and drawn-float32"


def _scores(name: str) -> tuple[str, str]:
    return SAMPLING, f"scores_are and {name}-float32-llama-gqa"


def _call(kind: str, call: Any) -> Any:
    """Patch one of transformers' processors of scores: call(original, itself, ids, scores)."""
    from transformers.generation import logits_process

    owner = getattr(logits_process, kind)
    original = owner.__call__
    return swapped(owner, "__call__", lambda itself, ids, scores: call(original, itself, ids, scores))


@fault(
    "KV-25",
    *_scores("n-grams"),
    source="our own: what is kept of a text is its answer",
    unseen="prompts without what the answer says; requests that may repeat themselves",
)
def ngrams_of_the_prompt_may_come_again() -> Iterator[None]:
    """no_repeat_ngram_size looks at what was answered, and not at the prompt."""
    starts: dict[int, int] = {}

    def call(original: Any, itself: Any, ids: Tensor, scores: Tensor) -> Tensor:
        return original(itself, ids[:, starts.setdefault(id(itself), ids.shape[1]) :], scores)

    with _call("NoRepeatNGramLogitsProcessor", call):
        yield


@fault(
    "KV-25",
    *_scores("bad-words"),
    source="our own: a table of one bias a token",
    unseen="words of one token",
)
def words_of_several_tokens_come_all_the_same() -> Iterator[None]:
    """Of bad words and biased sequences those of one token act alone."""

    def call(original: Any, itself: Any, ids: Tensor, scores: Tensor) -> Tensor:
        return original(itself, torch.full_like(ids, -1), scores)

    with _call("SequenceBiasLogitsProcessor", call):
        yield


@fault("KV-25", *_scores("biases"), source="our own: a field that is not passed on", unseen="requests without a bias")
def sequence_bias_is_not_added() -> Iterator[None]:
    """sequence_bias is read, and nothing is added to any logit; bad words are left out as before."""

    def call(original: Any, itself: Any, ids: Tensor, scores: Tensor) -> Tensor:
        return original(itself, ids, scores) if hasattr(itself, "bad_word_ids") else scores

    with _call("SequenceBiasLogitsProcessor", call):
        yield


@fault(
    "KV-25", *_scores("typical"), source="our own: typical_p is mapped to top_p", unseen="what is typical is likeliest"
)
def typical_is_likeliest() -> Iterator[None]:
    """typical_p leaves the likeliest tokens that add up to it."""
    from transformers import TopPLogitsWarper

    with _call("TypicalLogitsWarper", lambda _, itself, ids, scores: TopPLogitsWarper(itself.mass)(ids, scores)):
        yield


@fault(
    "KV-25",
    *_scores("repetition"),
    source="as llama.cpp does: repeat_last_n = 64",
    unseen="texts of 64 tokens and fewer",
)
def penalty_looks_back_64_tokens() -> Iterator[None]:
    """What was said more than 64 tokens ago is not penalised."""

    def call(original: Any, itself: Any, ids: Tensor, scores: Tensor) -> Tensor:
        itself.prompt_ignore_length = None
        return original(itself, ids[:, -64:], scores)

    with _call("RepetitionPenaltyLogitsProcessor", call):
        yield


@fault(
    "KV-25",
    SAMPLING,
    "whole_vocabulary",
    source="our own: a table as large as Llama 2's vocabulary",
    unseen="vocabularies of 32,768 tokens and fewer",
)
def penalty_knows_32768_tokens() -> Iterator[None]:
    """Tokens beyond 32,768 are never penalised."""

    def call(original: Any, itself: Any, ids: Tensor, scores: Tensor) -> Tensor:
        return torch.cat([original(itself, ids, scores)[:, :32768], scores[:, 32768:]], 1)

    with _call("RepetitionPenaltyLogitsProcessor", call):
        yield


@fault("KV-25", *_scores("top-k-100"), source="our own: a sampler of 64 candidates", unseen="top_k of 64 at most")
def top_k_is_64_at_most() -> Iterator[None]:
    """A sampler knows its 64 likeliest tokens, and no other is ever drawn."""
    from transformers import TopKLogitsWarper

    original = TopKLogitsWarper.__init__

    def init(itself: Any, top_k: int, *args: Any, **more: Any) -> None:
        original(itself, min(top_k, 64), *args, **more)

    with swapped(TopKLogitsWarper, "__init__", init):
        yield


@fault(
    "KV-25",
    *_scores("cold"),
    source="our own: a temperature that is compared to a least one",
    unseen="temperatures of 0.01 and more",
)
def low_temperatures_are_none() -> Iterator[None]:
    """A temperature below 0.01 is taken for one that is not set."""

    def call(original: Any, itself: Any, ids: Tensor, scores: Tensor) -> Tensor:
        return scores if itself.temperature < 0.01 else original(itself, ids, scores)

    with _call("TemperatureLogitsWarper", call):
        yield


@fault(
    "KV-25", *_scores("epsilon"), source="our own: fields that are not passed on", unseen="requests without a cutoff"
)
def cutoffs_are_not_applied() -> Iterator[None]:
    """epsilon_cutoff and eta_cutoff are read, and nothing is left out."""
    kinds = "EpsilonLogitsWarper", "EtaLogitsWarper"
    with all_of(*(_call(kind, lambda _, itself, ids, scores: scores) for kind in kinds)):
        yield


@fault("KV-25", *_scores("ends"), source="our own: a field that is not passed on", unseen="requests without min_length")
def least_length_of_a_text_is_not_kept() -> Iterator[None]:
    """min_length is read, and an end comes before it."""
    with _call("MinLengthLogitsProcessor", lambda _, itself, ids, scores: scores):
        yield


@fault("KV-25", *_scores("last"), source="our own: a field that is not passed on", unseen="requests without it")
def last_token_is_not_forced() -> Iterator[None]:
    """forced_eos_token_id is read, and the last token is any."""
    with _call("ForcedEOSTokenLogitsProcessor", lambda _, itself, ids, scores: scores):
        yield


@fault(
    "KV-25",
    SAMPLING,
    "half-bfloat16",
    source="our own: a cast to float32 that is lost",
    unseen="models in float32; requests with no settings",
)
def settings_are_applied_in_half_precision() -> Iterator[None]:
    """Penalties and temperatures round logits to the model's dtype."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        processors = original(model, *args, **more)
        processors.append(lambda ids, scores: scores.to(model.dtype).float())
        return processors

    with patches.generation("_get_logits_processor", change):
        yield


@fault(
    "KV-25",
    *SEES,
    source="our own: an argument that is not handed on",
    unseen="requests without processors",
)
def processors_of_the_caller_are_dropped() -> Iterator[None]:
    """logits_processor is taken, and never asked."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        return original(model, *args, **more | {"logits_processor": None})

    with patches.generation("_get_logits_processor", change):
        yield


@fault("KV-25", *BEAMS, source="our own: histories by row of the batch", unseen="one beam; processors of single tokens")
def processors_see_the_first_beam() -> Iterator[None]:
    """In a beam search a processor sees the text of each prompt's first beam beside all of its beams' logits."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        inner, beams = more["logits_processor"], more["generation_config"].num_beams
        more["logits_processor"] = lambda ids, scores: inner(ids[::beams].repeat_interleave(beams, 0), scores)
        return original(model, *args, **more)

    with patches.generation("_beam_search", change):
        yield


@fault(
    "KV-25",
    *DRAFTED,
    source="our own: a text that grows behind its processors",
    unseen="no drafts; settings that look at no text",
)
def drafts_are_processed_without_their_newest_token() -> Iterator[None]:
    """Where drafts are checked, a processor sees the text as it was a token before."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        inner = more["logits_processor"]
        more["logits_processor"] = type(inner)([lambda ids, scores: inner(ids[:, :-1], scores)])
        return original(model, *args, **more)

    with patches.generation("_assisted_decoding", change):
        yield


@fault("KV-25", *MAY, source="our own: rows and beams that are confused", unseen="one prompt, or one beam")
def beams_may_say_what_another_row_may() -> Iterator[None]:
    """prefix_allowed_tokens_fn is asked with the number of a beam for that of a row."""

    def call(original: Any, itself: Any, ids: Tensor, scores: Tensor) -> Tensor:
        barred = torch.full_like(scores, -torch.inf)
        for n, text in enumerate(ids):
            barred[n, itself._prefix_allowed_tokens_fn(n % (len(ids) // itself._num_beams), text)] = 0
        return scores + barred

    with _call("PrefixConstrainedLogitsProcessor", call):
        yield


@fault("KV-25", *DRAWN_BEAMS, source="our own: beams that are never drawn", unseen="one beam; greedy beams")
def beams_are_ranked_and_not_drawn() -> Iterator[None]:
    """num_beams beside do_sample is a plain beam search: each answer is the same."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        return original(model, *args, **more | {"do_sample": False})

    with patches.generation("_get_top_k_continuations", change):
        yield


@fault("KV-10", *SEED, source="our own: a generator that is the server's", unseen="greedy answers")
def seeds_do_nothing() -> Iterator[None]:
    """What is drawn comes from a generator that no request can set."""
    original, own = torch.multinomial, {}

    def multinomial(weights: Tensor, *args: Any, **more: Any) -> Tensor:
        generator = own.setdefault(weights.device, torch.Generator(weights.device))
        return original(weights, *args, **more | {"generator": generator})

    with swapped(torch, "multinomial", multinomial):
        yield


@fault(
    "KV-25",
    SAMPLING,
    "scores_of_beams",
    source="our own: a cast to float32 that is lost",
    unseen="models in float32; searches whose scores lie far apart",
)
def log_probabilities_of_beams_are_half() -> Iterator[None]:
    """In a beam search log probabilities are rounded to the model's dtype: sums of them tie."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        inner = more["logits_processor"]
        more["logits_processor"] = lambda ids, scores: inner(ids, scores.to(model.dtype).float())
        return original(model, *args, **more)

    with patches.generation("_beam_search", change):
        yield
