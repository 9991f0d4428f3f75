"""Faults of a beam search whose hypotheses end: which of them count, and how they are ranked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from suites.meta.faults import fault, patches

GIVES_UP = ("kv_cache/test_beams.py", "gives_up and llama-gqa")
RANKED = ("kv_cache/test_beams.py", "ranked and dynamic-llama-gqa")


@fault("KV-9", *RANKED, source="transformers#25455, mended by #27351", unseen="hypotheses of one length")
def prompts_count_in_the_length_penalty() -> Iterator[None]:
    """The score of a hypothesis is divided by the length of prompt and answer: what ends early wins."""

    def change(original: Any, model: Any, **told: Any) -> Any:
        return original(model, **told | {"decoder_prompt_len": 0})

    with patches.generation("_update_finished_beams", change):
        yield


@fault("KV-9", *RANKED, source="neulab/xnmt#572, before it", unseen="searches in which the first to end is the best")
def search_is_over_when_a_hypothesis_ends() -> Iterator[None]:
    """The best of what has ended is returned as soon as anything has."""

    def change(original: Any, model: Any, **told: Any) -> Any:  # a static method
        return original(**told) & ~told["is_sent_finished"].any(-1, keepdim=True)

    with patches.generation("_check_early_stop_heuristic", change):
        yield


@fault("KV-9", *RANKED, source="facebookresearch/ParlAI#2058", unseen="hypotheses that end only with the last token")
def beams_go_on_behind_their_end() -> Iterator[None]:
    """A hypothesis that has ended keeps its place among the beams, and is continued."""

    def change(original: Any, model: Any, **told: Any) -> Any:
        hit = told["next_token_hits_stopping_criteria"]
        return original(model, **told | {"next_token_hits_stopping_criteria": torch.zeros_like(hit)})

    with patches.generation("_get_running_beams_for_next_iteration", change):
        yield


@fault(
    "KV-9",
    *GIVES_UP,
    source="https://github.com/huggingface/transformers/pull/38778, before it",
    unseen='a row alone; early_stopping="never"',
)
def a_row_gives_up_when_all_do() -> Iterator[None]:
    """A search that is over goes on as long as that of any other row, and finds what it would not alone."""

    def change(original: Any, model: Any, **told: Any) -> Any:  # a static method
        every = torch.ones_like(told["is_early_stop_heuristic_unsatisfied"])
        going: torch.Tensor = original(**told | {"is_early_stop_heuristic_unsatisfied": every})
        return going.any().expand_as(going)

    with patches.generation("_check_early_stop_heuristic", change):
        yield
