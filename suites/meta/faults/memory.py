"""Faults that cost memory and leave every output as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suites.meta.faults import after_loading, fault, patches, swapped

WEIGHTS = ("memory/test_weights.py", "llama-gqa and float32")
OWN = "memory/test_cache_in_use.py"
LEFT = (OWN, "left_a_cache and dynamic-plain-llama-gqa")
CACHE = ("memory/test_kv_cache.py", "llama-gqa and float32")


@fault("MEM-1", *WEIGHTS, source="https://github.com/ROCm/vllm/pull/1213", unseen="untied models")
def tied_head_is_duplicated() -> Iterator[None]:
    """The output head owns a second copy of the embedding."""

    def change(model: Any) -> None:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)

    with after_loading(change):
        yield


@fault("MEM-1", *WEIGHTS, source="our own: a master copy that was meant for training", unseen="outputs")
def full_precision_copy_is_kept() -> Iterator[None]:
    """One layer keeps a float32 copy of its weight in an attribute that is no buffer."""

    def change(model: Any) -> None:
        layer = next(m for m in model.modules() if isinstance(m, nn.Linear))
        layer.master = [layer.weight.detach().float().clone()]

    with after_loading(change):
        yield


@fault(
    "MEM-1",
    "memory/test_weights.py",
    "nf4 and llama-gqa",
    source="https://github.com/pytorch/torchchat/issues/1362",
    unseen="accuracy: it is better",
)
def one_layer_stays_in_full_precision() -> Iterator[None]:
    """One projection is never quantized."""
    from suites.meta.faults.quantization import _not_converted

    with _not_converted(lambda names: [*names, "model.layers.0.mlp.down_proj"]):
        yield


@fault("MEM-2", *CACHE, source="https://github.com/meta-pytorch/torchtune/issues/38", unseen="MHA")
def cache_stores_every_query_head() -> Iterator[None]:
    """Keys and values are repeated before they are cached."""
    from transformers.cache_utils import DynamicLayer

    original = DynamicLayer.update

    def update(self: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        keys, values = original(self, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), *args, **more)
        return keys[:, ::2], values[:, ::2]

    with swapped(DynamicLayer, "update", update):
        yield


@fault("MEM-2", *CACHE, source="https://github.com/huggingface/transformers/pull/46700", unseen="DynamicCache")
def static_cache_is_twice_as_long() -> Iterator[None]:
    """max_cache_len is not honoured."""
    from transformers.cache_utils import StaticLayer

    original = StaticLayer.__init__

    def init(self: Any, max_cache_len: int, **more: Any) -> None:
        original(self, max_cache_len=2 * max_cache_len, **more)

    with swapped(StaticLayer, "__init__", init):
        yield


@fault("MEM-2", *CACHE, source="our own: a cache that keeps float32 for safety", unseen="float32 models")
def cache_keeps_the_previous_step() -> Iterator[None]:
    """Each layer keeps the keys of the step before beside the current ones."""
    from transformers.cache_utils import DynamicLayer

    original = DynamicLayer.update

    def update(self: Any, *args: Any, **more: Any) -> Any:
        self.before = getattr(self, "keys", torch.empty(0))
        return original(self, *args, **more)

    with swapped(DynamicLayer, "update", update):
        yield


@fault("MEM-2", *LEFT, source="our own: a view of nothing, on everything", unseen="outputs")
def reset_keeps_the_storage() -> Iterator[None]:
    """A cache that was reset shows no token, and holds on to the bytes of all until the next request has come."""
    patches.empties("DynamicLayer")

    def change(reset: Any, layer: Any) -> None:
        layer.keys, layer.values = layer.keys[..., 1:1, :], layer.values[..., 1:1, :]
        layer.spare = [layer.keys.as_strided((layer.keys.untyped_storage().nbytes() // layer.keys.itemsize,), (1,), 0)]

    with patches.layers(change, "DynamicLayer", method="reset"):
        yield


@fault("MEM-2", *LEFT, source="our own: room for rows that may come", unseen="outputs; batches that stay")
def rows_that_left_keep_their_room() -> Iterator[None]:
    """Where rows are selected, the batch as it was before stays beside them."""

    def change(select: Any, layer: Any, indices: Tensor) -> None:
        layer.room = layer.keys, layer.values
        select(layer, indices)

    with patches.layers(change, "DynamicLayer", method="batch_select_indices"):
        yield


@fault(
    "MEM-2",
    OWN,
    "of_generate and dynamic-mistral-window",
    source="https://github.com/huggingface/transformers/pull/40002",
    unseen="outputs; caches that are made by hand; no window",
)
def cache_of_generate_knows_no_window() -> Iterator[None]:
    """The cache that `generate` makes is not told of the config: layers with a window keep every token."""
    from transformers import DynamicCache
    from transformers.generation import utils

    class Plain(DynamicCache):  # type: ignore[misc]
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__()

    with swapped(utils, "DynamicCache", Plain):
        yield


@fault("MEM-2", OWN, "of_generate and static-llama-gqa", source="our own: the longest, to be safe", unseen="outputs")
def static_cache_of_generate_is_as_long_as_the_context() -> Iterator[None]:
    """`generate` makes a static cache for the longest text that a model takes, and not for the request."""

    def change(original: Any, model: Any, *args: Any, **more: Any) -> Any:
        more["max_cache_len"] = model.config.max_position_embeddings
        return original(model, *args, **more)

    with patches.generation("_prepare_static_cache", change):
        yield


@fault(
    "MEM-2",
    OWN,
    "of_generate and bfloat16-static-llama-gqa",
    source="our own: a cache that is made before there is a key to see",
    unseen="float32 models; prompts that come whole",
)
def cache_that_is_made_early_is_float32() -> Iterator[None]:
    """A static cache for a prompt in chunks is made before the first, in float32 whatever the model's dtype."""
    from transformers.cache_utils import Cache, StaticLayer

    early, update = Cache.early_initialization, StaticLayer.update

    def made(self: Any, *args: Any, **more: Any) -> None:
        early(self, *args, **more | {"dtype": torch.float32})

    def cast(self: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        if not self.is_initialized:
            return update(self, k, v, *args, **more)
        return tuple(x.to(k.dtype) for x in update(self, k.to(self.keys.dtype), v.to(self.keys.dtype), *args, **more))

    with swapped(Cache, "early_initialization", made), swapped(StaticLayer, "update", cast):
        yield


@fault("MEM-1", *WEIGHTS, source="our own: names, of which a tied head has one too", unseen="untied models")
def footprint_has_a_tied_head_twice() -> Iterator[None]:
    """`get_memory_footprint()` counts a tensor for each of its names."""
    from transformers import PreTrainedModel

    def footprint(self: Any, return_buffers: bool = True) -> int:
        every = [*self.named_parameters(remove_duplicate=False), *self.named_buffers()]
        return sum(tensor.nbytes for _, tensor in every)

    with swapped(PreTrainedModel, "get_memory_footprint", footprint):
        yield


def _untied(model: Any) -> None:
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)


CHANGED = ("memory/test_load.py", "after_a_change and {}-float32-llama-gqa")


@fault("MEM-3", CHANGED[0], CHANGED[1].format("cast"), source="our own", unseen="models that are loaded in their dtype")
def a_cast_unties_the_head() -> Iterator[None]:
    """A tied model that is cast has a head of its own."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.to

    def to(self: Any, *args: Any, **more: Any) -> Any:
        model = original(self, *args, **more)
        if any(isinstance(asked, torch.dtype) for asked in args):
            _untied(model)
        return model

    with swapped(PreTrainedModel, "to", to):
        yield


@fault(
    "MEM-3",
    CHANGED[0],
    CHANGED[1].format("extended"),
    source="https://github.com/huggingface/transformers/issues/35141, of its kind",
    unseen="vocabularies that stay as they are",
)
def an_extended_vocabulary_unties_the_head() -> Iterator[None]:
    """A tied model that is given more tokens has a head of its own."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.resize_token_embeddings

    def resized(self: Any, *args: Any, **more: Any) -> Any:
        found = original(self, *args, **more)
        _untied(self)
        return found

    with swapped(PreTrainedModel, "resize_token_embeddings", resized):
        yield


@fault(
    "MEM-4", "memory/test_load.py", "no_file", source="our own: bytes are no tensors", unseen="whoever counts tensors"
)
def a_file_stays_in_memory() -> Iterator[None]:
    """The weights' file is read as bytes, and these are never dropped."""
    kept: list[bytes] = []

    def change(model: Any) -> None:
        kept.extend(file.read_bytes() for file in Path(model.name_or_path).glob("*.safetensors"))

    with after_loading(change):
        yield


@fault(
    "MEM-7",
    "memory/test_decode.py",
    "nothing_larger and bfloat16-llama-gqa",
    source="our own: a guard against overflow",
    unseen="float32; outputs, which are better",
)
def attention_is_in_float32_throughout() -> Iterator[None]:
    """In half precision all keys and values are copied to float32 at each step."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        mixed, weights = call(module, q.float(), k.float(), v.float(), mask, **more)
        return mixed.to(q.dtype), weights

    with patches.interface(change):
        yield


@fault(
    "MEM-7",
    "memory/test_decode.py",
    "nothing_larger and float16-llama-gqa",
    source="our own: modules that are to be kept in float32, and are not",
    unseen="float32; outputs, which are better",
)
def feed_forward_is_in_float32() -> Iterator[None]:
    """In half precision the feed-forward copies its weights to float32 at each call."""

    def forward(original: Any, mlp: Any, x: Tensor) -> Tensor:
        gate, up, down = (layer.weight.float() for layer in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        y = x.float()
        return ((mlp.act_fn(y @ gate.mT) * (y @ up.mT)) @ down.mT).to(x.dtype)

    with patches.forward("LlamaMLP", forward):
        yield


@fault(
    "MEM-11",
    "memory/test_placement.py",
    "float32-0.6-llama-gqa",
    source="our own: a name that changed, in a list of what is not to be moved",
    unseen="prompts; modules that are not offloaded",
)
def offloaded_layers_write_into_a_copy() -> Iterator[None]:
    """A layer that is fetched from where it was offloaded is handed a copy of its cache."""
    from accelerate.hooks import AlignDevicesHook

    original = AlignDevicesHook.pre_forward

    def pre_forward(self: Any, module: Any, *args: Any, **more: Any) -> Any:
        held = {name: copy.deepcopy(more[name]) for name in ("cache", "past_key_values") if more.get(name) is not None}
        return original(self, module, *args, **more | (held if "Attention" in type(module).__name__ else {}))

    with swapped(AlignDevicesHook, "pre_forward", pre_forward):
        yield


@fault(
    "MEM-6",
    "memory/test_prefill.py",
    "grows_as_predicted and short-float32-llama-gqa",
    source="our own: a table that is made wherever there is a mask",
    unseen="prompts that come without a mask; short prompts",
)
def mask_that_hides_nothing_is_tabled() -> Iterator[None]:
    """A mask of nothing but ones is made a table of all queries and keys."""
    from transformers import masking_utils

    original = masking_utils._ignore_causal_mask_sdpa

    def ignore(padding_mask: Any, *args: Any, **more: Any) -> bool:
        return padding_mask is None and bool(original(padding_mask, *args, **more))

    with swapped(masking_utils, "_ignore_causal_mask_sdpa", ignore):
        yield
