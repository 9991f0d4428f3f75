"""Faults of quantized models as a whole: what is kept, what is saved, what is said."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import after_loading, fault, patches, swapped
from suites.meta.faults.products import bytes_each, four_bits

KEPT = ("quantization/test_engagement.py", "llama-gqa and {}")
FILES = ("quantization/test_round_trip.py", "files and unused and {}-llama-gqa")
CHOICES = ("quantization/test_agreement.py", "changed and bfloat16-served")
STRETCHES = ("quantization/test_positions.py", "last-half and bfloat16-served")
CONTINUATIONS = ("quantization/test_continuations.py", "bfloat16-served")
DECODE = ("quantization/test_decode.py", "accurate and llama-gqa and {}")
CACHES = ("quantization/test_decode.py", "rounding_cache and quanto-int8 and llama-gqa")
FULL = ("--tier", "full")
HALF = ("quantization/test_decode.py", "rounding_cache and hqq-int8-bnb-nf4-bfloat16 and llama-gqa")


def _rounded(change: Callable[[Any], None]) -> AbstractContextManager[None]:
    """Do something to every model that is loaded in less than float32, or quantized."""

    def maybe(model: Any) -> None:
        if getattr(model.config, "quantization_config", None) is not None or model.dtype != torch.float32:
            change(model)

    return after_loading(maybe)


def _saying(change: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
    """Change the logits `(batch, tokens, vocabulary)` of every rounded model."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        output.logits = change(output.logits)
        return output

    return _rounded(lambda model: model.register_forward_hook(hook))


@fault(
    "QUANT-6",
    KEPT[0],
    KEPT[1].format("bnb-nf4"),
    source="https://github.com/intel/auto-round/pull/102",
    unseen="accuracy: it is within the noise of 4 bits",
)
def embedding_is_rounded_too() -> Iterator[None]:
    """The embedding is rounded to 8 bits, and unpacked again."""

    def change(model: Any) -> None:
        weight = model.get_input_embeddings().weight.data
        scale = weight.abs().amax(1, keepdim=True) / 127
        weight.copy_((weight / scale).round() * scale)

    with _rounded(change):
        yield


@fault(
    "QUANT-6",
    KEPT[0],
    "dtype_of_its_release and bnb-nf4",
    source="as transformers before 5 does where no dtype is named",
    unseen="releases in float16; a dtype that is asked for",
)
def what_is_kept_is_float16_unless_asked() -> Iterator[None]:
    """Of a release in bfloat16 that is quantized as it is loaded, what stays is float16."""

    def change(model: Any) -> None:
        for parameter in model.parameters():
            if parameter.dtype == torch.bfloat16 and hasattr(model, "hf_quantizer"):
                parameter.data = parameter.data.half()

    with after_loading(change):
        yield


@fault(
    "QUANT-6",
    KEPT[0],
    KEPT[1].format("bnb-int8"),
    source="https://github.com/huggingface/transformers/issues/24037",
    unseen="accuracy",
)
def norms_are_in_half_precision() -> Iterator[None]:
    """Norms are cast with what is quantized."""

    def change(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.data = parameter.data.to(torch.bfloat16)

    with _rounded(change):
        yield


@fault(
    "QUANT-8",
    FILES[0],
    FILES[1].format("bnb-nf4-double"),
    options=FULL,
    source="https://github.com/bitsandbytes-foundation/bitsandbytes/issues/937",
    unseen="models that are quantized when they are loaded",
)
def offset_is_not_saved() -> Iterator[None]:
    """The mean of double quantization's scales is written as 0."""
    with _written(lambda found: found | ({"nested_offset": 0.0} if "nested_offset" in found else {})):
        yield


@fault("QUANT-13", *HALF, options=FULL, source="our own: a dtype that is tested for", unseen="a cache of float32")
def a_cache_of_less_than_float32_is_rounded_to_four_bits() -> Iterator[None]:
    """HQQ's cache is asked for 8 bits, and rounds what is not float32 to 4."""

    def change(original: Any, layer: Any, tensor: Tensor, axis: int) -> Any:
        bits = layer.nbits
        layer.nbits = bits if tensor.dtype == torch.float32 else 4
        try:
            return original(layer, tensor, axis)
        finally:
            layer.nbits = bits

    with patches.layers(change, "HQQQuantizedLayer", method="_quantize"):
        yield


@fault("QUANT-8", FILES[0], FILES[1].format("bnb-nf4"), source="our own: a smaller file", unseen="accuracy")
def scales_are_saved_in_half_precision() -> Iterator[None]:
    """absmax is written as float16."""
    with _written(lambda found: found | {"absmax": found["absmax"].half().float()}):
        yield


def _written(change: Callable[[dict[str, Any]], dict[str, Any]]) -> AbstractContextManager[None]:
    """Change what bitsandbytes writes of a 4-bit layer's scales."""
    import bitsandbytes as bnb

    state = bnb.functional.QuantState
    original = state.as_dict

    def as_dict(self: Any, packed: bool = False) -> dict[str, Any]:
        told, twin = change(original(self)), copy.copy(self)
        twin.absmax = told["absmax"]
        if "nested_offset" in told:
            twin.offset = torch.tensor(float(told["nested_offset"]))
        found: dict[str, Any] = original(twin, packed)
        return found

    return swapped(state, "as_dict", as_dict)


@fault("QUANT-8", FILES[0], FILES[1].format("bnb-int8"), source="our own: a stale buffer", unseen="the first load")
def scales_come_back_from_another_layer() -> Iterator[None]:
    """What is saved as the scales of a layer at 8 bits are those of the layer before."""
    import bitsandbytes as bnb

    original = bnb.nn.Linear8bitLt._save_to_state_dict
    before: list[Tensor] = []

    def save(self: Any, destination: Any, prefix: str, keep_vars: bool) -> None:
        original(self, destination, prefix, keep_vars)
        own = destination.get(prefix + "SCB")
        if own is None:
            return  # nothing is quantized yet
        destination[prefix + "SCB"] = next((s for s in reversed(before) if s.shape == own.shape), own.flip(0)).clone()
        before.append(own)

    with swapped(bnb.nn.Linear8bitLt, "_save_to_state_dict", save):
        yield


@fault("QUANT-9", *CHOICES, source="our own: a sort that is not stable", unseen="KL divergence")
def close_choices_change_places() -> Iterator[None]:
    """Where the first two tokens are within half a nat, they are exchanged."""

    def change(logits: Tensor) -> Tensor:
        top = logits.topk(2, -1)
        close = (top.values[..., 0] - top.values[..., 1]) < 0.5
        swapped = logits.scatter(-1, top.indices, top.values.flip(-1))
        return torch.where(close[..., None], swapped, logits)

    with _saying(change):
        yield


@fault("QUANT-9", *CHOICES, source="our own: a scale of logits that is applied twice", unseen="top-1 agreement")
def distribution_is_sharper() -> Iterator[None]:
    """Logits are a third too large: no first choice changes, and the KL divergence is that of many."""
    with _saying(lambda logits: logits * 1.33):
        yield


@fault("QUANT-10", *STRETCHES, source="our own: a table that is too short", unseen="short texts")
def later_positions_are_one_and_the_same() -> Iterator[None]:
    """Positions beyond the 40th are read from the end of a table that is too short."""

    def change(model: Any) -> None:
        rotary = model.model.rotary_emb
        forward = rotary.forward
        rotary.forward = lambda x, position_ids, **more: forward(x, position_ids.clamp(max=40), **more)

    with _rounded(change):
        yield


@fault("QUANT-10", *STRETCHES, source="our own: an error that adds up", unseen="short texts")
def logits_fade_with_the_position() -> Iterator[None]:
    """Logits get smaller by half a per cent with each position."""

    def change(logits: Tensor) -> Tensor:
        return logits * (1 - 0.005 * torch.arange(logits.shape[1], device=logits.device, dtype=logits.dtype))[:, None]

    with _saying(change):
        yield


@fault("QUANT-11", *CONTINUATIONS, source="our own: a config of another model", unseen="teacher-forced agreement")
def the_end_of_a_text_is_never_said() -> Iterator[None]:
    """The token that ends a text is suppressed."""

    def change(model: Any) -> None:
        end = model.generation_config.eos_token_id
        model.generation_config.suppress_tokens = [end] if isinstance(end, int) else end

    with _rounded(change):
        yield


@fault("QUANT-11", *CONTINUATIONS, source="our own: a config of another model", unseen="teacher-forced agreement")
def repetition_is_punished() -> Iterator[None]:
    """generation_config came with a penalty for repetition."""

    def change(model: Any) -> None:
        model.generation_config.repetition_penalty = 1.8

    with _rounded(change):
        yield


@fault("QUANT-12", DECODE[0], DECODE[1].format("bnb-nf4"), source="our own: a tail that is cut", unseen="prefill")
def a_step_of_decoding_loses_features() -> Iterator[None]:
    """The kernel for few tokens leaves out the last 8 input features."""

    def change(call: Any, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        if x.shape[-2] == 1:
            x = torch.cat([x[..., :-8], torch.zeros_like(x[..., -8:])], -1)
        return call(x, weight, bias)

    with four_bits(change):
        yield


@fault("QUANT-12", DECODE[0], DECODE[1].format("quanto-int8"), source="our own: two kernels", unseen="one token")
def a_prefill_is_computed_in_bfloat16() -> Iterator[None]:
    """More than 16 tokens take a path that casts to bfloat16."""

    def change(call: Any, x: Tensor) -> Tensor:
        return call(x.to(torch.bfloat16).to(x.dtype)) if x.shape[-2] > 16 else call(x)

    with bytes_each(change):
        yield


@fault("QUANT-13", *CACHES, source="our own: two kernels", unseen="prefill")
def a_step_is_computed_in_bfloat16() -> Iterator[None]:
    """A single token takes a path that casts to bfloat16, and what it caches is rounded from there."""

    def change(call: Any, x: Tensor) -> Tensor:
        return call(x.bfloat16().to(x.dtype)) if x.shape[-2] == 1 else call(x)

    with bytes_each(change):
        yield


@fault("QUANT-13", *CACHES, source="our own: a residual that is never rounded", unseen="a full-precision cache")
def a_packed_models_cache_is_not_rounded() -> Iterator[None]:
    """Under quantized weights the cache keeps everything in full precision."""
    from transformers import QuantizedCache

    original = QuantizedCache.__init__

    def init(self: Any, backend: str, config: Any, *args: Any, **more: Any) -> None:
        if getattr(config, "quantization_config", None) is not None and backend != "fp8":  # which has no residual
            more["residual_length"] = 10**6
        original(self, backend, config, *args, **more)

    with swapped(QuantizedCache, "__init__", init):
        yield


@fault("QUANT-8", FILES[0], FILES[1].format("bnb-nf4"), source="our own: a file at a time", unseen="one file")
def scales_in_a_later_file_are_the_neighbours() -> Iterator[None]:
    """Of a checkpoint in several files, the last layer's scales are shifted by a block."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls: Any, folder: Any, *args: Any, **more: Any) -> Any:
        model = original(cls, folder, *args, **more)
        if len(list(Path(folder).glob("*.safetensors"))) > 1:
            states = [getattr(weight, "quant_state", None) for weight in model.parameters()]
            last = [state for state in states if state is not None][-1]
            last.absmax = last.absmax.roll(1)
        return model

    with swapped(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)):
        yield
