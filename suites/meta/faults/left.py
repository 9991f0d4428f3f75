"""Faults that show beside or after a request: settings that it leaves, steps that do more, and others that it meets."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch

from suites.meta.faults import after_loading, fault, patches, swapped

FILE = "kv_cache/test_reuse.py"


@fault(
    "KV-10",
    FILE,
    "leaves_all and attended and llama-gqa",
    source="transformers' sdpa, which cannot hand out weights",
    unseen="requests for nothing but tokens",
)
def weights_leave_eager_attention_behind() -> Iterator[None]:
    """A request for weights of attention switches the model to eager, and it stays so."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        if more.get("output_attentions"):
            model.set_attn_implementation("eager")
        return original(model, *args, **more)

    with patches.generation("generate", change):
        yield


@fault(
    "KV-10",
    FILE,
    "leaves_all and stopped and llama-gqa",
    source="our own: against contention with a tokenizer's threads",
    unseen="answers; requests without stop strings",
)
def stop_strings_leave_one_thread() -> Iterator[None]:
    """A request with stop strings sets torch to one thread, and leaves it so."""
    from transformers.generation.stopping_criteria import StopStringCriteria

    original = StopStringCriteria.__init__

    def init(self: Any, *args: Any, **more: Any) -> None:
        torch.set_num_threads(1)
        original(self, *args, **more)

    with swapped(StopStringCriteria, "__init__", init):
        yield


@fault(
    "KV-10",
    FILE,
    "leaves_all and plain and llama-gqa",
    source="our own: OMP_NUM_THREADS=1 of a launcher, by hand",
    unseen="answers",
)
def loading_leaves_one_thread() -> Iterator[None]:
    """A load sets torch to one thread, and leaves it so."""
    with after_loading(lambda model: torch.set_num_threads(1)):
        yield


@fault(
    "KV-10",
    FILE,
    "leaves_all and plain and llama-gqa",
    source="our own: a seed for what a checkpoint lacks, as `set_seed` of trainers",
    unseen="answers that nothing is drawn for; a process that seeds itself after loading",
)
def loading_seeds_all_that_is_drawn() -> Iterator[None]:
    """A load seeds torch with 0: whatever is drawn after it is the same each time."""
    with after_loading(lambda model: torch.manual_seed(0)):
        yield


@fault(
    "KV-10",
    FILE,
    "leaves_all and plain and llama-gqa",
    source="our own: weights that are drawn before the released ones are read",
    unseen="answers that nothing is drawn for; a process that seeds itself after loading",
)
def loading_draws_numbers() -> Iterator[None]:
    """A load draws numbers of torch's: what a seed gives after it is not what it gives without it."""
    with after_loading(lambda model: torch.rand(1)):
        yield


@fault(
    "KV-10",
    FILE,
    "leaves_all and sampled and llama-gqa",
    source="our own: a benchmark's seed, left in a server",
    unseen="answers of torch, which draws by itself",
)
def requests_seed_python() -> Iterator[None]:
    """A request that is drawn seeds Python's own random numbers: names that are made of them come again."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        if more.get("do_sample"):
            random.seed(0)
        return original(model, *args, **more)

    with patches.generation("generate", change):
        yield


@fault(
    "KV-14",
    "kv_cache/test_generate.py",
    "midst and llama-gqa",
    source="our own: what a request asked for, as an attribute of the model",
    unseen="requests one after the other",
)
def processors_lie_on_the_model() -> Iterator[None]:
    """Every step takes the processors of the request that began last."""
    from transformers import LogitsProcessorList

    latest: list[Any] = []

    class Latest(LogitsProcessorList):  # type: ignore[misc]
        def __call__(self, *args: Any, **more: Any) -> Any:
            return latest[-1](*args, **more)

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        latest[:] = [original(model, *args, **more)]
        return Latest(latest[-1])

    with patches.generation("_get_logits_processor", change):
        yield


@fault(
    "KV-14",
    "kv_cache/test_generate.py",
    "long_answer and llama-gqa",
    source="our own: a buffer for the positions of an answer",
    unseen="answers of up to 64 tokens",
)
def positions_of_an_answer_wrap_after_64() -> Iterator[None]:
    """The 65th token of an answer stands where the first stood."""
    start: list[Any] = []

    def model(original: Any, self: Any, *args: Any, **more: Any) -> Any:
        where = more["position_ids"]
        if where.shape[-1] > 1:
            start[:] = [where[..., -1:] + 1]
        else:
            more["position_ids"] = start[0] + (where - start[0]) % 64
        return original(self, *args, **more)

    with patches.forward("LlamaModel", model):
        yield


STEPS = ("memory/test_decode.py", "steps_of_generate and llama-gqa")


@fault("MEM-7", *STEPS, source="our own: scores that are dropped where nobody asks", unseen="what is left at the end")
def logits_of_each_step_stay_to_the_end() -> Iterator[None]:
    """`generate` collects the logits of each step, whether somebody asks for them or not."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        kept: list[Any] = []
        with model.get_output_embeddings().register_forward_hook(lambda head, given, out: kept.append(out)):
            return original(model, *args, **more)

    with patches.generation("_sample", change):
        yield


@fault("MEM-7", *STEPS, source="our own: something to go back to when a step fails", unseen="what is left at the end")
def cache_is_copied_before_each_step() -> Iterator[None]:
    """A step begins with a copy of the whole cache."""
    kept: list[Any] = []

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        cache = more.get("cache", more.get("past_key_values"))
        kept[:] = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers if patches.cached(more)]
        return original(model, *args, **more)

    with patches.generation("prepare_inputs_for_generation", change):
        yield


@fault(
    "KV-16",
    "kv_cache/test_engagement.py",
    "in_chunks_runs_once and llama-gqa",
    source="our own: a setting that is read and not passed on",
    unseen="answers",
)
def prompt_in_chunks_goes_in_whole() -> Iterator[None]:
    """A prompt goes in at once, whatever chunks were asked for."""

    def change(original: Any, model: Any, ids: Any, config: Any, *args: Any, **more: Any) -> Any:
        config.prefill_chunk_size = None
        return original(model, ids, config, *args, **more)

    with patches.generation("_prefill", change):
        yield
