"""Faults of what a request asks for, or leaves open: a mask, a cache, a length, no draw, no such token."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import after_loading, all_of, fault, patches, swapped

UNMASKED = "kv_cache/test_generate.py", "without_a_mask and llama-gqa"
EMBEDDED = "kv_cache/test_generate.py", "prompts_of_embeddings and llama-gqa"
MIDST = "kv_cache/test_generate.py", "in_the_midst and llama-gqa"
WAYS = "kv_cache/test_engagement.py", "every_way and llama-gqa"
DRAFTED = "kv_cache/test_generate.py", "speculation and own-draft and dynamic-llama-gqa"
DRAWN = "weights/test_generation.py", "drawn and llama-gqa"
STREAMED = "kv_cache/test_generate.py", "from-1-float32-dynamic-plain-llama-gqa"
LETTERS = "kv_cache/test_generate.py", "stop_string and letters"
CHARACTERS = "kv_cache/test_generate.py", "stop_string and characters"


def _stops(is_over: Callable[[list[str], str], bool]) -> AbstractContextManager[Any]:
    """Patch what ends an answer: is_over(what each of its last tokens spells by itself, a stop string)."""
    from transformers.generation.stopping_criteria import StopStringCriteria

    original = StopStringCriteria.__init__

    def init(itself: Any, tokenizer: Any, stop_strings: Any) -> None:
        original(itself, tokenizer, stop_strings)
        itself.spell = lambda ids: [tokenizer.decode(token) for token in ids]

    def call(itself: Any, ids: Tensor, scores: Any, **more: Any) -> Tensor:
        texts = [itself.spell(row[-8:].tolist()) for row in ids]
        return torch.tensor([any(is_over(t, s) for s in itself.stop_strings) for t in texts], device=ids.device)

    return all_of(swapped(StopStringCriteria, "__init__", init), swapped(StopStringCriteria, "__call__", call))


@fault(
    "KV-14",
    *UNMASKED,
    source="https://github.com/microsoft/onnxruntime-genai/pull/1694, before it",
    unseen="requests with a mask; padding with a token of its own",
)
def ends_of_turns_are_taken_for_padding() -> Iterator[None]:
    """A mask that is not given hides the token of padding, also where that ends turns."""

    def change(original: Any, model: Any, ids: Tensor, config: Any, *args: Any, **more: Any) -> Tensor:
        mask: Tensor = original(model, ids, config, *args, **more)
        return mask if config._pad_token_tensor is None else ids.ne(config._pad_token_tensor).long()

    with patches.generation("_prepare_attention_mask_for_generation", change):
        yield


@fault("KV-14", *UNMASKED, source="our own: a mask of ones by default", unseen="requests with a mask, or of one length")
def padding_is_seen_where_no_mask_is_given() -> Iterator[None]:
    """A request without a mask is taken to be without padding."""

    def change(original: Any, model: Any, ids: Tensor, *args: Any, **more: Any) -> Tensor:
        return torch.ones_like(original(model, ids, *args, **more))

    with patches.generation("_prepare_attention_mask_for_generation", change):
        yield


@fault(
    "KV-16", *WAYS, source="our own: what training leaves in a config", unseen="tokens; requests that ask for a cache"
)
def cache_is_off_unless_it_is_asked_for() -> Iterator[None]:
    """use_cache is false in what was loaded, and a request that does not name it recomputes everything."""

    def change(model: Any) -> None:
        model.generation_config.use_cache = model.config.use_cache = False

    with after_loading(change):
        yield


@fault("KV-16", *WAYS, source="our own: an argument that one of two loops does not hand on", unseen="tokens; one beam")
def beams_recompute_their_histories() -> Iterator[None]:
    """A beam search computes the whole text of every beam at each step."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        told = {name: value for name, value in more.items() if name not in ("cache", "past_key_values")}
        return original(model, *args, **told | {"use_cache": False})

    with patches.generation("_beam_search", change):
        yield


@fault(
    "KV-15",
    *DRAFTED,
    source="https://github.com/huggingface/transformers/pull/46993",
    unseen="drafts that end with the answer; no drafts",
)
def drafts_go_on_beyond_the_length() -> Iterator[None]:
    """What was drafted and accepted is not cut at the length that was asked for."""

    def change(original: Any, model: Any, *args: Any, generation_config: Any, **more: Any) -> Any:
        config = copy.deepcopy(generation_config)
        config.max_length += 16
        return original(model, *args, generation_config=config, **more)

    with patches.generation("_assisted_decoding", change):
        yield


@fault("WEIGHTS-2", *DRAWN, source="our own: `asked or released`", unseen="releases that draw nothing")
def a_request_for_no_draw_is_drawn() -> Iterator[None]:
    """do_sample = False is taken for a request that says nothing, and what was released counts."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        config, *rest = original(model, *args, **more)
        config.do_sample = config.do_sample or model.generation_config.do_sample
        return config, *rest

    with patches.generation("_prepare_generation_config", change):
        yield


@fault("WEIGHTS-2", *DRAWN, source="our own: a field that is not passed on", unseen="releases that suppress nothing")
def suppressed_tokens_come_all_the_same() -> Iterator[None]:
    """suppress_tokens of a release is read, and nothing is suppressed."""
    from transformers.generation import logits_process

    kind = logits_process.SuppressTokensLogitsProcessor
    with swapped(kind, "__call__", lambda itself, ids, scores: scores):
        yield


@fault("KV-14", *EMBEDDED, source="our own: a mask that goes by ids", unseen="requests of ids, or of one length")
def padding_of_embeddings_is_seen() -> Iterator[None]:
    """Where a prompt is handed in as embeddings, its mask is lost."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        if more.get("inputs_embeds") is not None:
            more["attention_mask"] = torch.ones_like(more["attention_mask"])
        return original(model, *args, **more)

    with patches.generation("generate", change):
        yield


@fault("KV-14", *MIDST, source="our own: a workspace of the model's", unseen="requests one after the other")
def requests_share_a_workspace() -> Iterator[None]:
    """The rotary tables of a call lie on the model, where its layers look for them."""
    shared: dict[int, Any] = {}

    def rotary(original: Any, module: Any, *args: Any, **more: Any) -> Any:
        shared[id(module.config)] = original(module, *args, **more)
        return shared[id(module.config)]

    def attention(original: Any, module: Any, *args: Any, **more: Any) -> Any:
        left = shared.get(id(module.config))
        if left is not None and left[0].shape == more["position_embeddings"][0].shape:
            more["position_embeddings"] = left
        return original(module, *args, **more)

    with patches.forward("LlamaRotaryEmbedding", rotary), patches.forward("LlamaAttention", attention):
        yield


@fault(
    "KV-24",
    *LETTERS,
    source="https://github.com/vllm-project/vllm/pull/534, before it",
    unseen="tokens that end with it",
)
def stop_string_is_looked_for_at_the_end_alone() -> Iterator[None]:
    """A stop string behind which its last token goes on ends nothing."""
    with _stops(lambda tokens, stop: "".join(tokens).endswith(stop)):
        yield


@fault("KV-24", *LETTERS, source="our own: a stop string that is taken for a token", unseen="strings within a token")
def stop_string_is_looked_for_token_by_token() -> Iterator[None]:
    """A stop string that begins in one token and ends in the next ends nothing."""
    with _stops(lambda tokens, stop: stop in tokens[-1]):
        yield


@fault("KV-24", *CHARACTERS, source="as transformers before 5.18 does", unseen="stop strings of whole tokens")
def stop_string_of_parts_of_characters_is_not_found() -> Iterator[None]:
    """Each token is read by itself, and a character of several tokens is not in what they spell."""
    with _stops(lambda tokens, stop: stop in "".join(tokens) and stop not in "".join(tokens[:-1])):
        yield


@fault(
    "KV-14", *STREAMED, source="our own: a loop that is left before its last token is sent", unseen="what is returned"
)
def last_token_is_not_streamed() -> Iterator[None]:
    """A streamer is told the end before the last token, which is returned alone."""

    class Behind:
        """Hands on what came before."""

        def __init__(self, streamer: Any) -> None:
            self.streamer, self.last = streamer, None

        def put(self, value: Tensor) -> None:
            if self.last is not None:
                self.streamer.put(self.last)
            self.last = value

        def end(self) -> None:
            self.streamer.end()

    def change(original: Any, model: Any, *args: Any, streamer: Any = None, **more: Any) -> Any:
        return original(model, *args, streamer=streamer and Behind(streamer), **more)

    with patches.generation("generate", change):
        yield


@fault(
    "KV-15", *DRAFTED, source="our own: a stream of what was drafted and not refused", unseen="requests without drafts"
)
def tokens_beside_the_drafts_are_not_streamed() -> Iterator[None]:
    """What is said in place of a refused draft, or behind those that were right, is returned alone."""

    def change(original: Any, model: Any, *args: Any, streamer: Any = None, **more: Any) -> Any:
        class Drafts:
            put = staticmethod(lambda value: streamer.put(value[..., :-1]))
            end = staticmethod(lambda: streamer.end())

        return original(model, *args, streamer=streamer and Drafts, **more)

    with patches.generation("_assisted_decoding", change):
        yield
