"""Faults that allocate: on the way of a load, of a prompt and of a step, or in a place that has no room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from suites.meta.faults import after_loading, fault, patches, swapped

LOAD = ("memory/test_load.py", "test_load_leaves and llama-gqa and bfloat16")
COUNT = ("memory/test_load.py", "test_parameters and llama-gqa and bnb-nf4")
TIED = ("memory/test_load.py", "test_parameters and llama-gqa and bfloat16")
POSITION = ("memory/test_prefill.py", "test_generate and llama-gqa and float32")
CHUNK = ("memory/test_prefill.py", "test_generate and a_chunk and llama-gqa and float32")
LOGITS = ("memory/test_prefill.py", "test_logits and llama-gqa and bfloat16")
PROMPT = ("memory/test_prefill.py", "test_peak and llama-gqa")
STEP = ("memory/test_decode.py", "llama-gqa and dynamic-plain")
STATIC = ("memory/test_decode.py", "llama-gqa and static and not spare")
GROWTH = ("memory/test_growth.py", "float32 and sdpa and not math")
BEAM_LOGITS = ("memory/test_prefill.py", "every_way and beams and llama-gqa")
DRAFT_LOGITS = ("memory/test_prefill.py", "every_way and looked-up and llama-gqa")
PLACES = ("memory/test_placement.py", "mistral-window and float32 and 0.9")


@fault(
    "MEM-3",
    *COUNT,
    source="https://github.com/huggingface/transformers/issues/25978",
    unseen="8 bits, and models that are not quantized",
)
def packed_bytes_are_counted_as_parameters() -> Iterator[None]:
    """num_parameters counts the bytes that 4-bit weights are packed in."""
    with _num_parameters(lambda model: sum(p.numel() for p in model.parameters())):
        yield


@fault("MEM-3", *TIED, source="our own: a head that is tied is counted beside the embedding", unseen="untied models")
def tied_head_is_counted_twice() -> Iterator[None]:
    """num_parameters counts every name that a parameter has."""
    with _num_parameters(lambda model: sum(p.numel() for _, p in model.named_parameters(remove_duplicate=False))):
        yield


def _num_parameters(count: Callable[[Any], int]) -> ExitStack:
    from transformers import PreTrainedModel

    stack = ExitStack()
    for owner in PreTrainedModel.__mro__:
        if "num_parameters" in vars(owner):
            stack.enter_context(swapped(owner, "num_parameters", lambda self, *args, **more: count(self)))
    return stack


@fault("MEM-4", *LOAD, source="our own: a checkpoint that is kept for the next worker", unseen="the model's own bytes")
def loaded_checkpoint_stays_alive() -> Iterator[None]:
    """Whoever loads keeps the file's tensors, in a list of its own."""
    kept: list[Any] = []
    with after_loading(lambda model: kept.append([p.detach().float().clone() for p in model.parameters()])):
        yield
    kept.clear()


@fault(
    "MEM-4",
    *LOAD,
    source="our own: a load that converts everything before it lets anything go",
    unseen="after the load",
)
def load_goes_through_full_precision_twice() -> Iterator[None]:
    """On its way a model is there twice more, in float32, wherever it may be going."""

    def change(model: Any) -> None:
        for place in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            twice = [[p.detach().to(place, torch.float32, copy=True) for p in model.parameters()] for _ in range(2)]
            twice.clear()

    with after_loading(change):
        yield


@fault(
    "MEM-5",
    *LOGITS,
    source="https://github.com/huggingface/transformers/issues/30860",
    unseen="values, and float32 models",
)
def logits_are_upcast() -> Iterator[None]:
    """logits.float(), of every position."""
    with _answering(lambda out: setattr(out, "logits", out.logits.float())):
        yield


@fault("MEM-5", *LOGITS, source="our own: rounded back, so that the dtype is right", unseen="values and dtype")
def logits_are_upcast_and_rounded_back() -> Iterator[None]:
    """logits.float().to(dtype): the copy is gone when anybody looks."""
    with _answering(lambda out: setattr(out, "logits", out.logits.float().to(out.logits.dtype))):
        yield


@fault(
    "MEM-12", *POSITION, source="our own: an argument that a wrapper dropped", unseen="values: the last one's are right"
)
def generate_computes_logits_for_every_position() -> Iterator[None]:
    """The prompt's logits are computed for all of its tokens, and all but one thrown away."""

    def run(original: Any, self: Any, *args: Any, **more: Any) -> Any:
        return original(self, *args, **{**more, "logits_to_keep": 0})

    with patches.forward("LlamaForCausalLM", run):
        yield


@fault("MEM-12", *CHUNK, source="our own: an argument that one of two ways hands on", unseen="prompts in one piece")
def chunks_compute_logits_for_every_position() -> Iterator[None]:
    """Of a prompt that comes in chunks all positions have logits, and all but one are thrown away."""
    inside: list[bool] = []

    def chunked(original: Any, self: Any, *args: Any, **more: Any) -> Any:
        inside.append(any(getattr(told, "prefill_chunk_size", None) for told in (*args, *more.values())))
        try:
            return original(self, *args, **more)
        finally:
            inside.pop()

    def run(original: Any, self: Any, *args: Any, **more: Any) -> Any:
        return original(self, *args, **more | ({"logits_to_keep": 0} if any(inside) else {}))

    with patches.generation("generate", chunked), patches.forward("LlamaForCausalLM", run):
        yield


@fault("MEM-12", *POSITION, source="our own: logits are computed again for a log", unseen="values, and memory")
def head_runs_twice_a_step() -> Iterator[None]:
    """The head is called a second time for the same hidden states."""

    def run(original: Any, self: Any, *args: Any, **more: Any) -> Any:
        out = original(self, *args, **more)
        self.lm_head(torch.zeros(1, 1, self.config.hidden_size, dtype=self.dtype, device=self.device))
        return out

    with patches.forward("LlamaForCausalLM", run):
        yield


def _answering(change: Callable[[Any], None]) -> Any:
    """Something is done to what a Llama returns."""

    def run(original: Any, self: Any, *args: Any, **more: Any) -> Any:
        out = original(self, *args, **more)
        change(out)
        return out

    return patches.forward("LlamaForCausalLM", run)


@fault("MEM-6", *PROMPT, source="our own: what each layer returned is kept for inspection", unseen="outputs")
def hidden_states_of_every_layer_stay_alive() -> Iterator[None]:
    """Until the prompt is through, each layer's feed-forward output is held."""
    held: list[Tensor] = []

    def mlp(original: Any, self: Any, x: Tensor) -> Tensor:
        held.append(original(self, x))
        return held[-1]

    def model(original: Any, self: Any, *args: Any, **more: Any) -> Any:
        try:
            return original(self, *args, **more)
        finally:
            held.clear()

    with patches.forward("LlamaMLP", mlp), patches.forward("LlamaModel", model):
        yield


@fault(
    "MEM-6",
    *PROMPT,
    source="our own: a mask that the kernel can do without",
    unseen="short prompts, and outputs",
)
def causal_mask_is_a_table() -> Iterator[None]:
    """Causality is written down for every pair of tokens, though the kernel needs no mask."""

    def model(original: Any, self: Any, input_ids: Any = None, **more: Any) -> Any:
        table = torch.ones(input_ids.shape[1], input_ids.shape[1], dtype=self.dtype, device=input_ids.device).tril()
        out = original(self, input_ids=input_ids, **more)
        del table
        return out

    with patches.forward("LlamaModel", model):
        yield


@fault("MEM-6", *PROMPT, source="our own: a buffer as large as it could ever be needed", unseen="long prompts")
def workspace_is_taken_at_every_call() -> Iterator[None]:
    """Each call takes 256 KiB, however short the prompt is."""

    def model(original: Any, self: Any, *args: Any, **more: Any) -> Any:
        workspace = torch.empty(256 * 1024, dtype=torch.uint8, device=self.device)
        out = original(self, *args, **more)
        del workspace
        return out

    with patches.forward("LlamaModel", model):
        yield


@fault("MEM-7", *STEP, source="our own: room for growth that nobody counts", unseen="the cache's own tensors")
def cache_takes_room_ahead() -> Iterator[None]:
    """Each step puts a second slot aside, in a list beside the keys."""
    from transformers.cache_utils import DynamicLayer

    original = DynamicLayer.update

    def update(self: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        self.ahead = [*getattr(self, "ahead", []), torch.empty_like(k)]
        return original(self, k, v, *args, **more)

    with swapped(DynamicLayer, "update", update):
        yield


@fault("MEM-7", *STATIC, source="our own: a copy for a kernel that wants it contiguous", unseen="what a step keeps")
def step_copies_what_is_cached() -> Iterator[None]:
    """Attention is handed copies of the keys and values of a static layer."""
    from transformers.cache_utils import StaticLayer

    original = StaticLayer.update

    def update(self: Any, *args: Any, **more: Any) -> Any:
        keys, values = original(self, *args, **more)
        seen = int(keys[0, 0].abs().sum(-1).count_nonzero())
        handed = keys.view_as(keys)
        handed.copies = keys[..., :seen, :].clone()  # which live as long as attention holds what it was handed
        return handed, values

    with swapped(StaticLayer, "update", update):
        yield


@fault(
    "MEM-8",
    *GROWTH,
    source="our own: a fused kernel that refuses, and a quiet fall-back",
    unseen="outputs, and short prompts",
)
def fused_attention_falls_back_to_tables() -> Iterator[None]:
    """What is asked of a fused kernel is computed by the plain formula."""

    def plain(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, *args: Any, **more: Any) -> Tensor:
        scores = q @ k.mT * q.shape[-1] ** -0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v

    with swapped(F, "scaled_dot_product_attention", plain):
        yield


@fault("MEM-8", *GROWTH, source="our own: a mask that the kernel can do without", unseen="short prompts")
def fused_attention_is_handed_a_table_for_a_mask() -> Iterator[None]:
    """Causality is handed to the kernel as a float for every pair."""
    original = F.scaled_dot_product_attention

    def masked(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, *args: Any, **more: Any) -> Tensor:
        table = torch.full((q.shape[-2], k.shape[-2]), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
        out = original(q, k, v, attn_mask, *args, **more)
        del table
        return out

    with swapped(F, "scaled_dot_product_attention", masked):
        yield


@fault("MEM-11", *PLACES, source="our own: a copy for the next request", unseen="outputs")
def offloaded_weights_stay_after_a_request() -> Iterator[None]:
    """What was fetched for a layer's forward is not put away after it."""
    from accelerate.hooks import AlignDevicesHook

    with swapped(AlignDevicesHook, "post_forward", lambda self, module, output: output):
        yield


@fault(
    "MEM-11",
    "memory/test_placement.py",
    "llama-gqa and float32 and 0.6",
    source="https://github.com/huggingface/accelerate/pull/4083, before it",
    unseen="what is held; heads of their own; all in one place",
)
def tied_head_is_not_what_it_is_tied_to() -> Iterator[None]:
    """Where a model lies in several places, its tied head multiplies with what it was initialised with."""

    def change(model: Any) -> None:
        places = set((getattr(model, "hf_device_map", None) or {}).values())
        if len(places) > 1 and model.config.tie_word_embeddings:
            model.get_output_embeddings().register_forward_hook(lambda module, args, output: output * 0)

    with after_loading(change):
        yield


@fault("MEM-11", *PLACES, source="our own: a plan that counts on room which is not there", unseen="machines with room")
def room_is_not_kept_to() -> Iterator[None]:
    """`max_memory` is taken for half as large again as it is."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls: Any, *args: Any, **more: Any) -> Any:
        if more.get("max_memory"):
            more["max_memory"] = {where: size * 3 // 2 for where, size in more["max_memory"].items()}
        return original(cls, *args, **more)

    with swapped(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)):
        yield


@fault("MEM-12", *BEAM_LOGITS, source="our own: an argument that one of the ways hands on", unseen="greedy requests")
def beams_compute_logits_for_every_position() -> Iterator[None]:
    """Beam search computes logits for every position of a prompt, times its beams."""
    with patches.generation("_beam_search", _all_logits):
        yield


@fault("MEM-12", *DRAFT_LOGITS, source="our own: an argument that one of the ways hands on", unseen="greedy requests")
def drafting_computes_logits_for_every_position() -> Iterator[None]:
    """Assisted decoding and prompt lookup compute logits for every position of a prompt."""
    with patches.generation("_assisted_decoding", _all_logits):
        yield


def _all_logits(original: Any, model: Any, *args: Any, **more: Any) -> Any:
    more.pop("logits_to_keep", None)
    return original(model, *args, **more)
