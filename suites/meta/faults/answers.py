"""Faults in what `generate` answers: its tokens, its drafts and its ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, patches, swapped
from suites.meta.faults.positions import rotary

GREEDY = ("kv_cache/test_generate.py", "greedy and dynamic-plain-llama-gqa")
ENDS = ("kv_cache/test_generate.py", "ends_with_its_end and dynamic-plain-llama-gqa")
DRAFTED_END = ("kv_cache/test_generate.py", "drafted_answer and own-draft and dynamic-plain-llama-gqa")
REFUSED_END = ("kv_cache/test_generate.py", "drafted_answer and poor-draft and dynamic-plain-llama-gqa")
DRAFTS = ("kv_cache/test_generate.py", "speculation and dynamic-plain-llama-gqa")
OWN_DRAFT = ("kv_cache/test_generate.py", "speculation and own-draft and dynamic-plain-llama-gqa")
DRAFTER = ("kv_cache/test_generate.py", "drafter_says")
GROWING = ("DynamicLayer",)


@fault("KV-14", *GREEDY, source="https://github.com/skyzh/tiny-llm/pull/46", unseen="the first token")
def generated_tokens_stand_too_far() -> Iterator[None]:
    """While decoding, positions count the prompt twice."""

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        return forward(module, x, positions + 21 if positions.shape[-1] == 1 else positions)

    with rotary(change):
        yield


@fault("KV-14", *GREEDY, source="our own: a window for what is not cached", unseen="generation with a cache")
def recomputation_forgets_the_beginning() -> Iterator[None]:
    """Where there is no cache, a text beyond 24 tokens loses its first eight keys."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        if q.shape[-2] != k.shape[-2] or k.shape[-2] <= 24:
            return call(q, k, v, **more)
        seen = patches.shown(q, k, more).clone()
        seen[..., 9:, :8] = False
        return call(q, k, v, **more | {"attn_mask": seen, "is_causal": False})

    with patches.kernel(change):
        yield


@fault(
    "KV-14",
    "kv_cache/test_generate.py",
    "from-1-float32-dynamic-plain-bigcode-mqa",
    source="our own: `if positions.shape[-1] == 1: # a step`",
    unseen="two tokens and more; RoPE and ALiBi, which know distances only",
)
def prompt_of_one_token_is_taken_for_a_step() -> Iterator[None]:
    """`generate` counts a prompt of one token as cached before it goes in."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Tensor:
        positions: Tensor = original(model, *args, **more)
        return positions + 1 if positions.shape[1] == 1 else positions

    with patches.generation("_prepare_position_ids_for_generation", change):
        yield


def _handed_on(cast: Callable[[Tensor, torch.dtype], Tensor]) -> AbstractContextManager[None]:
    """Positions that `generate` hands to its model. cast(positions, the model's dtype) -> positions."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        inputs = original(model, *args, **more)
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = cast(inputs["position_ids"], model.dtype)
        return inputs

    return patches.generation("prepare_inputs_for_generation", change)


@fault(
    "KV-14",
    "kv_cache/test_generate.py",
    "from-125-float32-dynamic-plain-llama-gqa",
    source="our own: a mask that is summed in its own dtype",
    unseen="128 tokens and fewer; positions that a model counts itself",
)
def generated_positions_are_int8() -> Iterator[None]:
    """`generate` hands on positions in 8 bits: token 128 stands at -128."""
    with _handed_on(lambda positions, dtype: positions.to(torch.int8).long()):
        yield


@fault(
    "KV-14",
    "kv_cache/test_generate.py",
    "from-131-float32-dynamic-plain-llama-gqa",
    source="our own: a mask that is summed in its own dtype",
    unseen="prompts of 128 tokens and fewer",
)
def a_prompts_positions_are_int8() -> Iterator[None]:
    """`generate` numbers a prompt in 8 bits and counts on from there: token 128 stands at -128."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        return original(model, *args, **more).to(torch.int8).long()

    with patches.generation("_prepare_position_ids_for_generation", change):
        yield


def _ends(change: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
    """change(which rows end `(rows,)`) -> which rows end."""
    from transformers.generation.stopping_criteria import EosTokenCriteria

    original = EosTokenCriteria.__call__
    return swapped(EosTokenCriteria, "__call__", lambda self, *args, **more: change(original(self, *args, **more)))


@fault(
    "KV-24",
    *ENDS,
    source="our own: an end that is compared on another device, and lost",
    unseen="answers cut by length",
)
def end_of_text_ends_nothing() -> Iterator[None]:
    """The token that ends a text is a token like any other."""
    with _ends(torch.zeros_like):
        yield


@fault("KV-24", *ENDS, source="our own: any() for all()", unseen="one row, or rows that end together")
def first_end_ends_all_rows() -> Iterator[None]:
    """Where one row ends, all do."""
    with _ends(lambda ends: ends | ends.any()):
        yield


@fault(
    "KV-24",
    *ENDS,
    source="https://github.com/turboderp-org/exllamav2/issues/803",
    unseen="models whose texts end in one way",
)
def only_the_first_of_several_ends_counts() -> Iterator[None]:
    """Of the tokens that end a text, a turn's end and the text's, one is looked for."""
    from transformers.generation.stopping_criteria import EosTokenCriteria

    original = EosTokenCriteria.__init__
    with swapped(EosTokenCriteria, "__init__", lambda self, eos_token_id: original(self, eos_token_id[:1])):
        yield


@fault(
    "KV-15", *OWN_DRAFT, source="https://github.com/ggml-org/llama.cpp/issues/26750", unseen="tokens: they are right"
)
def right_drafts_are_never_taken() -> Iterator[None]:
    """Each drafted token is another one than the draft model said: each is refused, and nothing but time is lost."""
    from transformers.generation.candidate_generator import AssistedCandidateGenerator

    original = AssistedCandidateGenerator.get_candidates

    def candidates(self: Any, input_ids: Tensor, *args: Any, **more: Any) -> Any:
        found, logits = original(self, input_ids, *args, **more)
        drafted = found[:, input_ids.shape[1] :]
        return torch.cat([input_ids, torch.where(drafted > 0, drafted - 1, 1)], 1), logits

    with swapped(AssistedCandidateGenerator, "get_candidates", candidates):
        yield


@fault("KV-15", *DRAFTS, source="our own: a slice from the wrong end", unseen="all drafts accepted")
def refused_drafts_leave_a_token() -> Iterator[None]:
    """Where drafts are refused, values lose their oldest tokens and keys their newest."""
    with patches.layers(patches.drop_the_oldest_values, *GROWING, method="crop"):
        yield


@fault(
    "KV-15",
    *DRAFTER,
    source="https://github.com/lablup/mlxcel/pull/1002, before it",
    unseen="answers: what is checked is right; drafts that are all accepted",
)
def refused_drafts_stay_with_the_drafter() -> Iterator[None]:
    """The draft model goes on from its newest tokens, refused ones too, and forgets as many of its oldest."""
    from transformers.generation.candidate_generator import AssistedCandidateGenerator

    drafts: list[bool] = []

    def change(crop: Any, layer: Any, count: int) -> None:
        if not drafts:
            crop(layer, count)
        elif count:
            gone = abs(count) if count < 0 else layer.keys.shape[-2] - count
            layer.keys, layer.values = layer.keys[..., gone:, :], layer.values[..., gone:, :]

    original = AssistedCandidateGenerator.get_candidates

    def candidates(self: Any, *args: Any, **more: Any) -> Any:
        drafts.append(True)
        try:
            return original(self, *args, **more)
        finally:
            drafts.clear()

    with (
        patches.layers(change, *GROWING, method="crop"),
        swapped(AssistedCandidateGenerator, "get_candidates", candidates),
    ):
        yield


@fault(
    "KV-15",
    *DRAFTER,
    source="as transformers does where num_assistant_tokens_schedule is heuristic",
    unseen="answers; the first request",
)
def drafts_stay_short_once_they_were_refused() -> Iterator[None]:
    """How much is drafted shrinks with each refusal, and stays so for the draft model's next request."""
    from transformers.generation.candidate_generator import AssistedCandidateGenerator

    original = AssistedCandidateGenerator.update_candidate_strategy

    def update(self: Any, ids: Tensor, scores: Tensor, matches: int) -> None:
        original(self, ids, scores, matches)
        if matches < len(scores[0]) - 1:
            self.num_assistant_tokens = max(1, self.num_assistant_tokens - 1)
            self.assistant_model.generation_config.num_assistant_tokens = self.num_assistant_tokens

    with swapped(AssistedCandidateGenerator, "update_candidate_strategy", update):
        yield


@fault("KV-15", *DRAFTS, source="our own: a draft that is checked as if it were all text", unseen="greedy decoding")
def drafts_are_checked_with_their_future() -> Iterator[None]:
    """Tokens of a draft see those after them while they are checked."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        if 1 < q.shape[-2] < k.shape[-2]:
            return call(q, k, v, **more | {"attn_mask": None, "is_causal": False})
        return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault(
    "KV-14",
    "kv_cache/test_generate.py",
    "from-400-bfloat16-dynamic-plain-llama-gqa",
    source="our own: a mask that is summed in the model's dtype",
    unseen="256 tokens and fewer; float32; positions that a model counts itself",
)
def generated_positions_are_bfloat16() -> Iterator[None]:
    """`generate` hands on positions in the model's dtype: in bfloat16 token 257 stands at 256."""
    with _handed_on(lambda positions, dtype: positions.to(dtype).long()):
        yield


@fault(
    "KV-24",
    *ENDS,
    source="our own: isin() of the whole text",
    unseen="prompts of one turn, which have no end in them",
)
def end_in_the_prompt_ends_the_answer() -> Iterator[None]:
    """The end is looked for in the whole text: after a prompt with turns an answer is one token long."""
    from transformers.generation.stopping_criteria import EosTokenCriteria

    def call(self: Any, ids: Tensor, *args: Any, **more: Any) -> Tensor:
        return torch.isin(ids, self.eos_token_id.to(ids.device)).any(1)

    with swapped(EosTokenCriteria, "__call__", call):
        yield


@fault(
    "KV-24",
    *DRAFTED_END,
    source="https://github.com/huggingface/transformers/issues/47912",
    unseen="greedy decoding; refused drafts",
)
def end_inside_a_draft_ends_nothing() -> Iterator[None]:
    """Assisted decoding looks at the last token that was accepted, and goes on behind an end before it."""
    patches.reads("_assisted_decoding", "_eos_token_tensor")

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        more["generation_config"]._eos_token_tensor = None
        return original(model, *args, **more)

    with patches.generation("_assisted_decoding", change):
        yield


@fault("KV-24", *REFUSED_END, source="our own: a loop that is left before it cleans up", unseen="the answer")
def last_refused_drafts_stay_cached() -> Iterator[None]:
    """Where an answer ends, what was drafted behind it stays in the caller's cache, and the next turn follows it."""
    gone: dict[int, tuple[Tensor, Tensor]] = {}

    def crop(original: Any, layer: Any, count: int) -> None:
        if count:
            gone[id(layer)] = layer.keys[..., count:, :].clone(), layer.values[..., count:, :].clone()
        original(layer, count)

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        gone.clear()
        found = original(model, *args, **more)
        for layer in more.get("cache", more.get("past_key_values")).layers:
            if id(layer) in gone:
                pairs = zip((layer.keys, layer.values), gone[id(layer)], strict=True)
                layer.keys, layer.values = (torch.cat(pair, -2) for pair in pairs)
        return found

    with patches.layers(crop, *GROWING, method="crop"), patches.generation("_assisted_decoding", change):
        yield
