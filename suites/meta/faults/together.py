"""Faults of what each request is handed by continuous batching: its answer, its settings, its pages, its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from suites.meta.faults import fault, patches, swapped

FILE = "attention/test_paged.py"
OWN = (FILE, "as_it_asks and paged-sdpa and llama-gqa")
SHARED = ("kv_cache/test_engagement.py", "share_steps and paged-sdpa and llama-gqa")
DRAWN = "kv_cache/test_sampling.py"


def _manager() -> Any:
    from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

    return ContinuousBatchingManager


@fault(
    "ATTN-18",
    FILE,
    "with_any_of_its_ends and paged-sdpa and llama-gqa",
    source="our own: results as a queue hands them out",
    unseen="answers that end in the order in which they were asked for",
)
def results_come_as_they_end() -> Iterator[None]:
    """A batch's results are in the order in which they came to their ends."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        found = original(model, *args, **more)
        return dict(sorted(found.items(), key=lambda each: each[1].lifespan[1]))

    with patches.generation("generate_batch", change):
        yield


@fault(
    "KV-25",
    DRAWN,
    "requests_of_a_batch and drawn-float32-paged-sdpa-llama-gqa",
    source="our own: an answer that is known already",
    unseen="greedy requests; prompts that differ",
)
def equal_prompts_have_one_answer() -> Iterator[None]:
    """Of equal prompts one is answered, and the others are handed its answer."""

    def change(original: Any, model: Any, prompts: Any, *args: Any, **more: Any) -> Any:
        known = list(dict.fromkeys(map(tuple, prompts)))
        found = list(original(model, [list(prompt) for prompt in known], *args, **more).values())
        return {str(n): found[known.index(tuple(prompt))] for n, prompt in enumerate(prompts)}

    with patches.generation("generate_batch", change):
        yield


@fault(
    "KV-25",
    DRAWN,
    "requests_of_a_batch and drawn-twice and paged-sdpa-llama-gqa",
    source="our own: a generator of each request, seeded with its prompt",
    unseen="a single answer to each prompt; greedy requests",
)
def several_answers_are_drawn_alike() -> Iterator[None]:
    """All answers to a prompt are drawn by the same random numbers."""
    original = torch.multinomial

    def multinomial(probabilities: Any, *args: Any, **more: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found = original(probabilities[:1], *args, **more)
        return found.expand(len(probabilities), -1).clone()

    with swapped(torch, "multinomial", multinomial):
        yield


@fault("ATTN-18", *OWN, source="our own: one length for all", unseen="requests that say nothing of their length")
def length_of_a_request_is_the_managers() -> Iterator[None]:
    """How many tokens a request wants is not looked at: it has as many as the manager's settings say."""
    original = _manager().add_request

    def add(self: Any, prompt: Any, *args: Any, max_new_tokens: Any = None, **more: Any) -> Any:
        return original(self, prompt, *args, **more)

    with swapped(_manager(), "add_request", add):
        yield


@fault("ATTN-18", *OWN, source="our own: settings in one order, rows in another", unseen="requests that ask alike")
def temperatures_are_in_another_order() -> Iterator[None]:
    """A row is drawn at the temperature of the request beside it."""
    from transformers.generation.continuous_batching.cb_logits_processors import (
        ContinuousBatchingTemperatureLogitsWarper as Temperature,
    )

    original = Temperature.prepare_tensor_args

    with swapped(Temperature, "prepare_tensor_args", lambda self, rows: original(self, rows).roll(1)):
        yield


@fault("ATTN-18", *OWN, source="our own: a list that is one step ahead", unseen="tokens alone")
def log_probabilities_are_of_the_step_before() -> Iterator[None]:
    """A token comes with the log probability of the token before it."""
    from transformers.generation.continuous_batching.requests import RequestState

    original = RequestState.to_generation_output

    def output(self: Any) -> Any:
        found = original(self)
        found.logprobs = [0.0, *found.logprobs][:-1]
        return found

    with swapped(RequestState, "to_generation_output", output):
        yield


@fault("ATTN-18", *OWN, source="our own: a stream that is flushed before its end", unseen="results that come at once")
def last_result_of_a_stream_lacks_a_token() -> Iterator[None]:
    """The result that says that a streamed request is over lacks its last token."""
    from transformers.generation.continuous_batching.requests import RequestState

    original = RequestState.to_generation_output

    def output(self: Any) -> Any:
        found = original(self)
        found.generated_tokens = found.generated_tokens[: len(found.generated_tokens) - self.streaming]
        return found

    with swapped(RequestState, "to_generation_output", output):
        yield


@fault("ATTN-18", *OWN, source="our own: what is switched and not put back", unseen="answers")
def manager_leaves_eager_attention_behind() -> Iterator[None]:
    """The model goes on with eager attention when the manager is done."""
    original = _manager().stop

    def stop(self: Any, *args: Any, **more: Any) -> None:
        original(self, *args, **more)
        self.model.set_attn_implementation("eager")

    with swapped(_manager(), "stop", stop):
        yield


@fault(
    "ATTN-18",
    FILE,
    "several_answers and paged-sdpa and llama-gqa",
    source="our own: processors that are not known to be supported",
    unseen="greedy requests; settings that leave all in",
)
def top_k_of_a_batch_is_dropped() -> Iterator[None]:
    """Continuous batching leaves out top_k without a word, and draws from all tokens."""
    from transformers.generation.logits_process import TopKLogitsWarper

    with swapped(TopKLogitsWarper, "supports_continuous_batching", False):
        yield


@fault(
    "ATTN-18",
    FILE,
    "several_answers and paged-sdpa and llama-gqa",
    source="our own: a copy of whole pages alone",
    unseen="single answers; prompts that fill their pages",
)
def page_that_is_not_full_is_not_copied() -> Iterator[None]:
    """A second answer to a prompt has a last page of its own, into which nothing was copied."""
    from transformers.generation.continuous_batching.cache import PagedAttentionCache

    name = next(name for name in ("perform_cache_copy", "copy_cache") if hasattr(PagedAttentionCache, name))
    with swapped(PagedAttentionCache, name, lambda self, *args: None):
        yield


@fault("KV-16", *SHARED, source="our own: a hash that is salted anew", unseen="answers; prompts that differ")
def prefix_is_never_found() -> Iterator[None]:
    """A prompt that begins as another is computed from its first token."""
    from transformers.generation.continuous_batching.cache import PagedAttentionCache

    with swapped(PagedAttentionCache, "search_prefix_match", lambda self, request, prompt: 0):
        yield


@fault("KV-16", *SHARED, source="our own: a server that is told to take one at a time", unseen="answers")
def requests_are_served_in_turn() -> Iterator[None]:
    """A step runs one request, and the others wait."""
    from transformers.generation.continuous_batching.scheduler import Scheduler

    original = Scheduler._process_candidates

    def process(self: Any, candidates: Any, *args: Any) -> Any:
        return original(self, candidates[:1], *args)

    with swapped(Scheduler, "_process_candidates", process):
        yield


@fault(
    "MEM-2",
    "memory/test_cache_in_use.py",
    "pages_take and bfloat16 and paged-sdpa and llama-gqa",
    source="our own: pages in the dtype in which softmax is",
    unseen="models in float32",
)
def pages_are_float32() -> Iterator[None]:
    """Pages hold float32, whatever dtype the model has."""
    from transformers.generation.continuous_batching.cache import PagedAttentionCache

    init, update = PagedAttentionCache.__init__, PagedAttentionCache.update

    def make(self: Any, *args: Any, **more: Any) -> None:
        given = [torch.float32 if isinstance(value, torch.dtype) else value for value in args]
        init(self, *given, **more | ({"dtype": torch.float32} if "dtype" in more else {}))

    def write(self: Any, keys: Any, values: Any, *args: Any, **more: Any) -> Any:
        found = update(self, keys.float(), values.float(), *args, **more)
        return tuple(t.to(keys.dtype) for t in found)

    with swapped(PagedAttentionCache, "__init__", make), swapped(PagedAttentionCache, "update", write):
        yield
