"""Faults of what a request says of its end and its answers, beside what the release says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import all_of, fault, patches, swapped

GENERATE, RELEASE = "kv_cache/test_generate.py", "weights/test_generation.py"
SAYS = GENERATE, "request_says and criterion"
LENGTH = GENERATE, "request_says and max-length"
TIME = GENERATE, "in_its_time"
BESIDE = GENERATE, "beside_a_stop_string"
EMBEDDED = GENERATE, "prompts_of_embeddings and llama-gqa"
REQUEST = RELEASE, "what_it_says"
SEVERAL = "kv_cache/test_beams.py", "recomputing_finds and dynamic-plain-llama-gqa"
AT_ONCE = "kv_cache/test_beams.py", "gives_up and at-once"


@fault("KV-24", *SAYS, source="our own: an argument that is not handed on", unseen="no criteria")
def criteria_of_the_caller_are_dropped() -> Iterator[None]:
    """stopping_criteria, by which a server cancels, is taken and never asked."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        return original(model, *args, **more | {"stopping_criteria": type(more["stopping_criteria"])()})

    with patches.generation("_get_stopping_criteria", change):
        yield


@fault("KV-24", *LENGTH, source="our own: max_length for max_new_tokens", unseen="requests for new tokens")
def prompts_do_not_count_in_max_length() -> Iterator[None]:
    """max_length, which counts the prompt, is taken for the number of new tokens."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        config = more["generation_config"]
        if not more["has_default_max_length"] and config.max_new_tokens is None:
            config.max_new_tokens = config.max_length
        return original(model, *args, **more)

    with patches.generation("_prepare_generated_length", change):
        yield


@fault("KV-24", *TIME, source="our own: a timeout that is read and not kept", unseen="requests without max_time")
def max_time_ends_nothing() -> Iterator[None]:
    """An answer goes on when its time is over."""
    from transformers import MaxTimeCriteria

    def call(itself: Any, ids: Tensor, scores: Any, **more: Any) -> Tensor:
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    with swapped(MaxTimeCriteria, "__call__", call):
        yield


@fault("KV-24", *BESIDE, source="our own: `for stop in stop_strings`", unseen="lists of stop strings")
def one_stop_string_is_its_letters() -> Iterator[None]:
    """A stop string that is no list is taken for a list of its letters, of which any ends an answer."""
    from transformers import StopStringCriteria

    original = StopStringCriteria.__init__

    def init(itself: Any, tokenizer: Any, stop_strings: Any) -> None:
        original(itself, tokenizer, list(stop_strings))

    with swapped(StopStringCriteria, "__init__", init):
        yield


@fault("KV-24", *BESIDE, source="our own: stop strings in place of ends", unseen="requests without stop strings")
def ends_are_not_looked_for_beside_stop_strings() -> Iterator[None]:
    """Where a request names stop strings, a token that ends an answer is like any other."""
    from transformers import EosTokenCriteria

    def change(original: Any, model: Any, config: Any = None, *args: Any, **more: Any) -> Any:
        config = more.pop("generation_config", config)
        criteria = original(model, config, *args, **more)
        if config.stop_strings is not None:
            criteria[:] = [one for one in criteria if not isinstance(one, EosTokenCriteria)]
        return criteria

    with patches.generation("_get_stopping_criteria", change):
        yield


@fault("KV-14", *EMBEDDED, source="our own: a length of what has no ids", unseen="requests of ids")
def embeddings_alone_count_as_answered() -> Iterator[None]:
    """Where a prompt is embeddings alone, its tokens are taken off those that may be answered."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        config = original(model, *args, **more)
        if more["model_input_name"] == "inputs_embeds" and not more["input_ids_length"]:
            config.max_length = max(1, config.max_length - more["inputs_tensor"].shape[1])
        return config

    with patches.generation("_prepare_generated_length", change):
        yield


@fault(
    "WEIGHTS-2",
    *REQUEST,
    source="our own: `if asked != default`",
    unseen="requests for anything but the library's defaults; releases that draw nothing",
)
def what_equals_a_default_is_not_asked() -> Iterator[None]:
    """A setting that a request names, and that is the library's default, is taken for one it does not name."""
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        told = {name: value for name, value in more.items() if name not in defaults or value != defaults[name]}
        return original(model, *args, **told)

    with patches.generation("_prepare_generation_config", change):
        yield


@fault(
    "WEIGHTS-2",
    *REQUEST,
    source="as transformers before 4.50 does",
    unseen="requests by keywords; releases that say nothing but defaults",
)
def config_of_a_request_replaces_the_release() -> Iterator[None]:
    """Where a request comes with a config of its own, the release's settings are forgotten."""
    from transformers import GenerationConfig

    def change(original: Any, model: Any, *args: Any, generation_config: Any = None, **more: Any) -> Any:
        released = model.generation_config
        if generation_config is not None:
            model.generation_config = GenerationConfig()
        try:
            return original(model, *args, generation_config=generation_config, **more)
        finally:
            model.generation_config = released

    with patches.generation("generate", change):
        yield


@fault("WEIGHTS-2", *REQUEST, source="our own: settings that are put back behind no finally", unseen="no request fails")
def settings_of_a_failed_request_stay() -> Iterator[None]:
    """A request's settings are the model's while it runs, and stay so where it fails."""

    def prepare(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        model._before = vars(model).get("_before", model.generation_config)
        config, *rest = original(model, *args, **more)
        model.generation_config = config
        return config, *rest

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        found = original(model, *args, **more)
        model.generation_config = vars(model).pop("_before")
        return found

    with all_of(patches.generation("_prepare_generation_config", prepare), patches.generation("generate", change)):
        yield


@fault("WEIGHTS-2", *REQUEST, source="our own: repeat() for repeat_interleave()", unseen="one prompt, or one answer")
def answers_to_several_prompts_are_interleaved() -> Iterator[None]:
    """Of several answers to several prompts the first of each come first, then the second of each."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        found, several = original(model, *args, **more), more.get("num_return_sequences", 1)
        if several == 1:
            return found
        return found.view(-1, several, found.shape[-1]).transpose(0, 1).flatten(0, 1)

    with patches.generation("generate", change):
        yield


@fault("KV-9", *SEVERAL, source="our own: one answer for several", unseen="requests for one answer")
def every_answer_of_a_search_is_its_best() -> Iterator[None]:
    """Each of the answers that a beam search returns is the best one."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        found, several = original(model, *args, **more), more["generation_config"].num_return_sequences
        return found[::several].repeat_interleave(several, 0)

    with patches.generation("_beam_search", change):
        yield


@fault("KV-9", *AT_ONCE, source="our own: `early_stopping == 'never'` and nothing else", unseen="other early_stopping")
def search_never_ends_at_once() -> Iterator[None]:
    """early_stopping = True is taken for False: a search goes on when as many have ended as there are beams."""

    def change(original: Any, model: Any, *args: Any, generation_config: Any, **more: Any) -> Any:
        asked = generation_config.early_stopping
        generation_config.early_stopping = False if asked is True else asked
        return original(model, *args, generation_config=generation_config, **more)

    with patches.generation("_beam_search", change):
        yield
