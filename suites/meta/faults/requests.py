"""Faults that keep something of a request: its caches, its numbers, its graph."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from threading import current_thread, get_ident, main_thread
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import fault, patches, swapped

PLAIN = ("memory/test_requests.py", "test_requests_give and plain and llama-gqa")
FAILED = ("memory/test_requests.py", "test_requests_give and failed and llama-gqa")
OBJECTS = ("memory/test_requests.py", "leave_no_objects and plain")
LOOKED_UP = ("memory/test_requests.py", "test_requests_give and looked-up and llama-gqa")
DRAFTED = ("memory/test_requests.py", "test_requests_give and drafted and llama-gqa")
SAMPLED = ("memory/test_requests.py", "test_requests_give and sampled and llama-gqa")
BEAMS = ("memory/test_requests.py", "test_requests_give and beams and llama-gqa")
FIRST = ("memory/test_requests.py", "first_request and static and llama-gqa")
BATCH = ("memory/test_requests.py", "first_batch and paged-sdpa")
GRAPH = ("memory/test_requests.py", "test_requests_keep and llama-gqa")


@fault("MEM-9", *PLAIN, source="https://github.com/generative-computing/mellea/pull/544", unseen="a single request")
def cache_is_kept_for_each_request() -> Iterator[None]:
    """Every cache stays in a list."""
    from transformers.cache_utils import Cache

    kept: list[Any] = []
    original = Cache.__init__

    def init(self: Any, *args: Any, **more: Any) -> None:
        original(self, *args, **more)
        kept.append(self)

    with swapped(Cache, "__init__", init):
        yield
    kept.clear()


@fault("MEM-9", *PLAIN, source="our own: prefixes that are worth keeping, and no end of them", unseen="short prompts")
def long_prompts_are_kept_for_the_next() -> Iterator[None]:
    """What a prompt of 32 tokens and more has become stays in a list."""
    kept: list[Tensor] = []

    def model(original: Any, self: Any, input_ids: Any = None, **more: Any) -> Any:
        out = original(self, input_ids=input_ids, **more)
        if input_ids.shape[1] >= 32:
            kept.append(out.last_hidden_state)
        return out

    with patches.forward("LlamaModel", model):
        yield
    kept.clear()


@fault("MEM-9", *LOOKED_UP, source="our own: a count of what was accepted", unseen="requests without speculation")
def drafts_are_kept_for_statistics() -> Iterator[None]:
    """The candidates of every prompt lookup stay in a list."""
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    kept: list[Any] = []
    original = PromptLookupCandidateGenerator.get_candidates

    def candidates(self: Any, *args: Any, **more: Any) -> Any:
        found = original(self, *args, **more)
        kept.append(found[0].clone())
        return found

    with swapped(PromptLookupCandidateGenerator, "get_candidates", candidates):
        yield
    kept.clear()


@fault("MEM-9", *DRAFTED, source="our own: a drafter that knows its last request", unseen="requests without drafts")
def drafter_keeps_its_last_request() -> Iterator[None]:
    """What makes candidates hangs on the draft model after the request, and with it the draft model's cache."""
    from transformers.generation.candidate_generator import AssistedCandidateGenerator

    original = AssistedCandidateGenerator.__init__

    def init(self: Any, input_ids: Any, assistant_model: Any, *args: Any, **more: Any) -> None:
        original(self, input_ids, assistant_model, *args, **more)
        kept.append(assistant_model)
        assistant_model.__dict__["last"] = self

    kept: list[Any] = []
    with swapped(AssistedCandidateGenerator, "__init__", init):
        yield
    for model in kept:
        model.__dict__.pop("last", None)


@fault("MEM-9", *FAILED, source="our own: an error that is kept for a log", unseen="requests that end well")
def failed_request_keeps_its_frames() -> Iterator[None]:
    """The error is kept for a log, and with its traceback all that the request held."""
    kept: list[BaseException] = []

    def model(original: Any, self: Any, *args: Any, **more: Any) -> Any:
        try:
            return original(self, *args, **more)
        except Exception as error:
            kept.append(error)
            raise

    with patches.forward("LlamaModel", model):
        yield
    kept.clear()


@fault("MEM-9", *BEAMS, source="our own: a log of what beams were chosen", unseen="greedy requests")
def beams_keep_their_order() -> Iterator[None]:
    """The indices by which a cache was reordered stay in a list."""
    from transformers.cache_utils import DynamicLayer

    kept: list[Tensor] = []
    original = DynamicLayer.reorder_cache

    def reorder(self: Any, beam_idx: Tensor) -> None:
        kept.append(beam_idx.clone())
        original(self, beam_idx)

    with swapped(DynamicLayer, "reorder_cache", reorder):
        yield
    kept.clear()


@fault(
    "MEM-9",
    *OBJECTS,
    source="https://github.com/vllm-project/vllm/issues/28726",
    unseen="tensors, and caches of prompts that have an end",
)
def prompts_are_kept_as_lists() -> Iterator[None]:
    """The tokens of every request are logged, as lists of numbers."""
    kept: list[Any] = []

    def model(original: Any, self: Any, input_ids: Any = None, **more: Any) -> Any:
        kept.append(input_ids.tolist())
        return original(self, input_ids=input_ids, **more)

    with patches.forward("LlamaModel", model):
        yield
    kept.clear()


@fault("MEM-9", *OBJECTS, source="our own: numbers for a plot that nobody draws", unseen="tensors")
def distributions_are_kept_in_numpy() -> Iterator[None]:
    """The hidden state of every step is kept for statistics, as an array of numpy's."""
    kept: list[Any] = []

    def model(original: Any, self: Any, **more: Any) -> Any:
        out = original(self, **more)
        kept.append(out.last_hidden_state[:, -1].detach().cpu().float().numpy().copy())
        return out

    with patches.forward("LlamaModel", model):
        yield
    kept.clear()


@fault("MEM-10", *GRAPH, source="our own: no_grad was lost when the method was wrapped", unseen="tokens")
def generate_keeps_a_graph() -> Iterator[None]:
    """`generate` runs with gradients."""
    from transformers import GenerationMixin

    inner = inspect.unwrap(GenerationMixin.generate)

    def generate(self: Any, *args: Any, **more: Any) -> Any:
        return inner(self, *args, **more)

    with swapped(GenerationMixin, "generate", generate):
        yield


@fault("MEM-10", *GRAPH, source="our own: a wrapper that was meant for training", unseen="tokens")
def forward_switches_gradients_on() -> Iterator[None]:
    """A model's forward enables gradients, whatever its caller has said."""

    def model(original: Any, self: Any, *args: Any, **more: Any) -> Any:
        with torch.enable_grad():
            return original(self, *args, **more)

    with patches.forward("LlamaForCausalLM", model):
        yield


@fault("MEM-9", *SAMPLED, source="our own: log-probabilities that nobody asked for", unseen="greedy requests")
def sampling_keeps_its_probabilities() -> Iterator[None]:
    """What was drawn from stays in a list."""
    kept: list[Tensor] = []
    original = torch.multinomial

    def multinomial(probabilities: Tensor, *args: Any, **more: Any) -> Tensor:
        kept.append(probabilities)
        return original(probabilities, *args, **more)

    with swapped(torch, "multinomial", multinomial):
        yield
    kept.clear()


@fault("MEM-9", *PLAIN, source="our own: a cache without an end, by shape", unseen="prompts of one length")
def masks_are_kept_for_each_length() -> Iterator[None]:
    """The mask of every length that a prompt ever had is kept for the next of that length."""
    kept: dict[int, Tensor] = {}

    def model(original: Any, self: Any, input_ids: Any = None, **more: Any) -> Any:
        length = input_ids.shape[1]
        if length > 1 and length not in kept:
            kept[length] = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
        return original(self, input_ids=input_ids, **more)

    with patches.forward("LlamaModel", model):
        yield
    kept.clear()


@fault("MEM-9", *FIRST, source="as transformers 4.57's `generate` does", unseen="requests after the first")
def static_cache_of_a_request_stays() -> Iterator[None]:
    """A static cache that `generate` makes is kept for the next request, and takes its place then."""
    from transformers import StaticCache

    original, kept = StaticCache.__init__, []

    def init(cache: Any, *args: Any, **more: Any) -> None:
        original(cache, *args, **more)
        kept[:] = [cache]

    with swapped(StaticCache, "__init__", init):
        yield


@fault(
    "MEM-1",
    "memory/test_weights.py",
    "quantized and bnb-int8 and llama-gqa",
    source="bitsandbytes before 0.45, which kept a tiled layout beside the plain one",
    unseen="what is held before the first forward",
)
def int8_keeps_a_second_layout() -> Iterator[None]:
    """At its first forward a layer in int8 makes another layout of its weight, and keeps both."""
    import bitsandbytes as bnb

    original = bnb.nn.Linear8bitLt.forward

    def forward(layer: Any, x: Any) -> Any:
        found = original(layer, x)
        if not hasattr(layer.state, "tiled"):
            layer.state.tiled = layer.weight.data.mT.contiguous()
        return found

    with swapped(bnb.nn.Linear8bitLt, "forward", forward):
        yield


@fault("MEM-9", *BATCH, source="our own: a manager that waits for more", unseen="answers; requests of one at a time")
def manager_of_a_batch_stays() -> Iterator[None]:
    """Continuous batching keeps its manager on the model when it is done, and with it all of the paged cache."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        return original(model, *args, **more | {"persistent_manager": True})

    with patches.generation("generate_batch", change):
        yield


STREAMED = ("memory/test_requests.py", "first_request and streamed and llama-gqa")


@fault("MEM-9", *STREAMED, source="our own: connections that are never closed", unseen="requests without a stream")
def streams_are_kept() -> Iterator[None]:
    """A stream that has ended is kept, and with it what it had not written yet, in a buffer."""
    from transformers import TextStreamer

    original, kept = TextStreamer.end, []

    def end(self: Any) -> None:
        original(self)
        kept.append(torch.zeros(1024))

    with swapped(TextStreamer, "end", end):
        yield
    kept.clear()


@fault(
    "MEM-9",
    *STREAMED,
    source="our own: caches by thread, in a table of the process",
    unseen="requests that the main thread answers",
)
def each_thread_keeps_a_workspace() -> Iterator[None]:
    """Attention has a workspace for each thread, and keeps it when the thread has ended."""
    kept: dict[int, Tensor] = {}

    def change(call: Any, module: Any, q: Tensor, *args: Any, **more: Any) -> Any:
        if current_thread() is not main_thread():
            kept.setdefault(get_ident(), torch.zeros_like(q))
        return call(module, q, *args, **more)

    with patches.interface(change):
        yield
    kept.clear()


@fault(
    "MEM-9",
    "memory/test_requests.py",
    "first_request and described and llama-gqa",
    source="our own: something to look at when a request is over",
    unseen="requests for nothing but tokens",
)
def last_states_are_kept() -> Iterator[None]:
    """Hidden states that were asked for hang on the model until others are."""
    models: list[Any] = []

    def model(original: Any, self: Any, *args: Any, **more: Any) -> Any:
        found = original(self, *args, **more)
        if getattr(found, "hidden_states", None):
            self.__dict__["seen"] = found.hidden_states
            models.append(self)
        return found

    with patches.forward("LlamaForCausalLM", model):
        yield
    for each in models:
        each.__dict__.pop("seen", None)


@fault(
    "MEM-9",
    "memory/test_requests.py",
    "test_requests_give and stopped and llama-gqa",
    source="our own: criteria that are kept for the next request with the same words",
    unseen="requests without stop strings",
)
def stop_strings_keep_their_texts() -> Iterator[None]:
    """What was looked through for a stop string is kept."""
    from transformers.generation.stopping_criteria import StopStringCriteria

    original, kept = StopStringCriteria.__call__, []

    def call(self: Any, ids: Tensor, *args: Any, **more: Any) -> Any:
        kept.append(ids)
        return original(self, ids, *args, **more)

    with swapped(StopStringCriteria, "__call__", call):
        yield
    kept.clear()
