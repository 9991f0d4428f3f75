"""Faults of quantized layers in how they multiply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from suites.meta.faults import all_of, fault, swapped

FILE = "quantization/test_products.py"
NF4 = (FILE, "dequantized and bnb-nf4 and not wide")
INT8 = (FILE, "dequantized and bnb-int8")
AGAIN = "same_input and {}"
ASKED = (FILE, "asked_for and quanto-int8")


def four_bits(change: Callable[..., Tensor]) -> AbstractContextManager[Any]:
    """Patch a 4-bit layer's product. change(call, x, weight, bias) -> output, with the weight read, in x's dtype."""
    import bitsandbytes as bnb

    forward = bnb.nn.Linear4bit.forward

    def matmul(x: Tensor, packed: Tensor, quant_state: Any, out: Any = None, bias: Tensor | None = None) -> Tensor:
        weight = bnb.functional.dequantize_4bit(packed, quant_state).to(x.dtype)
        return change(F.linear, x, weight, bias)

    def plain(self: Any, x: Tensor) -> Tensor:
        self.support_avx512bf16_for_cpu = False  # the repacked path has a kernel of its own
        return forward(self, x)

    return all_of(swapped(bnb, "matmul_4bit", matmul), swapped(bnb.nn.Linear4bit, "forward", plain))


def eight_bits(change: Callable[..., Tensor]) -> AbstractContextManager[Any]:
    """Patch LLM.int8()'s product. change(call, x, state, bias) -> output."""
    import bitsandbytes as bnb

    original = bnb.matmul

    def matmul(
        x: Tensor, weight: Tensor, out: Any = None, state: Any = None, threshold: float = 0.0, bias: Any = None
    ) -> Tensor:
        def call(x: Tensor, threshold: float = threshold, bias: Any = bias) -> Tensor:
            kept, state.threshold = state.threshold, threshold
            try:
                return original(x, weight, state=state, threshold=threshold, bias=bias)
            finally:
                state.threshold = kept

        return change(call, x, state, bias)

    return swapped(bnb, "matmul", matmul)


def bytes_each(change: Callable[..., Tensor]) -> AbstractContextManager[Any]:
    """Patch the product of quanto's layers of 8 bits. change(call, x) -> output."""
    from optimum.quanto import QLinear

    original = QLinear.forward
    return swapped(QLinear, "forward", lambda self, x: change(lambda x: original(self, x), x))


@fault("QUANT-4", FILE, "half_precision", source="our own: a tile of another size", unseen="float32; many tokens")
def a_single_token_in_half_precision_loses_features() -> Iterator[None]:
    """The kernel for one token leaves out the last 32 input features where it computes in 16 bits."""

    def change(call: Any, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        if x.shape[-2] == 1 and x.element_size() == 2:
            x = torch.cat([x[..., :-32], torch.zeros_like(x[..., -32:])], -1)
        return call(x, weight, bias)

    with four_bits(change):
        yield


@fault("QUANT-4", *NF4, source="our own: a tail loop that starts too late", unseen="two tokens and more")
def a_single_token_loses_the_last_features() -> Iterator[None]:
    """The kernel for one token leaves out the last 32 input features."""

    def change(call: Any, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        if x.numel() == x.shape[-1]:
            x = torch.cat([x[..., :-32], torch.zeros_like(x[..., -32:])], -1)
        return call(x, weight, bias)

    with four_bits(change):
        yield


@fault("QUANT-4", *NF4, source="our own: a tile of 32 tokens", unseen="up to 32 tokens")
def tokens_beyond_32_are_those_of_the_first_tile() -> Iterator[None]:
    """The second tile of tokens is read from where the first one was."""

    def change(call: Any, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        first = x[..., :32, :]
        return call(torch.cat([first, *[first] * 4], -2)[..., : x.shape[-2], :], weight, bias)

    with four_bits(change):
        yield


@fault(
    "QUANT-4",
    FILE,
    "dequantized and 8-bnb-nf4 and not wide",
    source="our own: a kernel for decoding in batches with a tail loop of its own",
    unseen="one token or two, and more than 30",
)
def a_few_tokens_lose_the_last_features() -> Iterator[None]:
    """The kernel for 3 to 30 tokens leaves out the last 16 input features."""

    def change(call: Any, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        if 3 <= x.numel() // x.shape[-1] <= 30:
            x = torch.cat([x[..., :-16], torch.zeros_like(x[..., -16:])], -1)
        return call(x, weight, bias)

    with four_bits(change):
        yield


@fault(
    "QUANT-4",
    FILE,
    "dequantized and 1100 and bnb-nf4",
    source="our own: an offset that the second launch is not told",
    unseen="up to 1,024 tokens",
)
def tokens_beyond_1024_are_those_of_the_first_launch() -> Iterator[None]:
    """More than 1,024 tokens are multiplied in two launches, and both read from the beginning."""

    def change(call: Any, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        return call(x[..., torch.arange(x.shape[-2], device=x.device) % 1024, :], weight, bias)

    with four_bits(change):
        yield


@fault("QUANT-4", *NF4, source="our own: a fused kernel without an epilogue", unseen="layers without a bias")
def bias_is_dropped() -> Iterator[None]:
    """The fused kernel does not add the bias."""
    with four_bits(lambda call, x, weight, bias: call(x, weight)):
        yield


@fault("QUANT-4", *NF4, source="our own: rows and columns exchanged", unseen="square layers that are symmetric")
def weights_are_read_along_the_other_axis() -> Iterator[None]:
    """What is stored row by row is read column by column."""

    def change(call: Any, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        return call(x, weight.reshape(weight.shape[1], weight.shape[0]).mT, bias)

    with four_bits(change):
        yield


@fault("QUANT-4", *INT8, source="https://github.com/vllm-project/vllm/pull/10657", unseen="activations below 6")
def outliers_are_rounded_too() -> Iterator[None]:
    """The threshold of LLM.int8() is 0."""
    with eight_bits(lambda call, x, state, bias: call(x, threshold=0.0)):
        yield


@fault("QUANT-4", *INT8, source="our own: > in place of the column's maximum", unseen="activations below 6")
def outliers_are_left_out() -> Iterator[None]:
    """Outlier features are taken out of the product at 8 bits, and never added."""

    def change(call: Any, x: Tensor, state: Any, bias: Any) -> Tensor:
        return call(x.masked_fill((x.abs() >= 6).flatten(0, -2).any(0), 0))

    with eight_bits(change):
        yield


@fault(
    "QUANT-4",
    FILE,
    "dequantized and bnb-int8 and not wide",
    source="our own: outliers that are looked for once a call",
    unseen="a single token, and features that are outliers in all tokens",
)
def outliers_are_those_of_the_first_token() -> Iterator[None]:
    """A feature whose first token is below the threshold is rounded with the others, however large it becomes."""

    def change(call: Any, x: Tensor, state: Any, bias: Any) -> Tensor:
        outlier = x[..., :1, :].abs() >= 6
        scale = x.masked_fill(outlier, 0).abs().amax(-1, keepdim=True) / 127
        return call(torch.where(outlier, x, (x / scale).round() * scale))

    with eight_bits(change):
        yield


@fault(
    "QUANT-4",
    FILE,
    "dequantized and bnb-int8 and wide",
    source="https://github.com/bitsandbytes-foundation/bitsandbytes/issues/165",
    unseen="small layers",
)
def sums_of_codes_overflow_float16() -> Iterator[None]:
    """Codes are multiplied in float16 and scaled afterwards."""

    def change(call: Any, x: Tensor, state: Any, bias: Any) -> Tensor:
        codes = F.linear(x.half(), state.CB.half()) * (state.SCB.half() / 127)
        return codes.to(x.dtype) + (0 if bias is None else bias)

    with eight_bits(change):
        yield


@fault("QUANT-4", *INT8, source="our own: a scale a batch in place of a scale a token", unseen="batches of one token")
def one_scale_serves_all_tokens() -> Iterator[None]:
    """Activations are rounded with the largest value of the whole batch."""

    def change(call: Any, x: Tensor, state: Any, bias: Any) -> Tensor:
        outlier = (x.abs() >= 6).flatten(0, -2).any(0)
        scale = x.masked_fill(outlier, 0).abs().max() / 127
        return call(torch.where(outlier, x, (x / scale).round() * scale))

    with eight_bits(change):
        yield


@fault(
    "QUANT-4",
    FILE,
    "dequantized and quanto-int8",
    source="https://github.com/huggingface/optimum-quanto/pull/409",
    unseen="layers of up to 96 features",
)
def features_beyond_a_limit_are_noise() -> Iterator[None]:
    """A fast kernel writes overlapping tiles where there are many output features."""

    def change(call: Any, x: Tensor) -> Tensor:
        out = call(x).clone()
        out[..., 96:] = out[..., 96:].roll(1, -1) * 1.5
        return out

    with bytes_each(change):
        yield


@fault("QUANT-5", FILE, AGAIN.format("bnb-nf4"), source="our own: a workspace that is not cleared", unseen="once")
def a_split_products_workspace_is_not_cleared() -> Iterator[None]:
    """A split product adds to what the last one of the same size has left."""
    left: dict[Any, Tensor] = {}

    def change(call: Any, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        out = call(x, weight, bias) + left.get(x.shape, torch.zeros((), device=x.device, dtype=x.dtype))
        left[x.shape] = out * 2.0**-6
        return out

    with four_bits(change):
        yield


@fault("QUANT-5", FILE, AGAIN.format("bnb-int8"), source="our own: a running maximum", unseen="requests alone")
def scale_of_activations_is_the_largest_ever() -> Iterator[None]:
    """A static scale that is adapted while serving: a large request makes later ones coarser."""
    largest = [0.0]

    def change(call: Any, x: Tensor, state: Any, bias: Any) -> Tensor:
        largest[0] = max(largest[0], float(x.abs().max()))
        step = largest[0] / 127
        return call((x / step).round() * step)

    with eight_bits(change):
        yield


@fault("QUANT-7", *ASKED, source="https://github.com/huggingface/transformers/issues/26451", unseen="bfloat16 models")
def products_are_formed_in_bfloat16() -> Iterator[None]:
    """A float32 layer casts its input to bfloat16."""
    with bytes_each(lambda call, x: call(x.to(torch.bfloat16).to(x.dtype))):
        yield


@fault("QUANT-7", *ASKED, source="our own: a cast that LLM.int8() needs, and others do not", unseen="float16 models")
def inputs_take_a_detour_through_float16() -> Iterator[None]:
    """A float32 layer casts its input to float16."""
    with bytes_each(lambda call, x: call(x.half().to(x.dtype))):
        yield


@fault(
    "QUANT-4",
    FILE,
    "dequantized and 128-bnb-nf4 and not wide",
    source="our own: a remainder of 0",
    unseen="any other number of tokens",
)
def last_token_of_full_tiles_is_the_one_before() -> Iterator[None]:
    """A multiple of 64 tokens leaves no remainder, and the last token is never written."""

    def change(call: Any, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        out: Tensor = call(x, weight, bias)
        return torch.cat([out[..., :-1, :], out[..., -2:-1, :]], -2) if x.shape[-2] % 64 == 0 else out

    with four_bits(change):
        yield


@fault(
    "QUANT-4",
    FILE,
    "dequantized and deep and bnb-nf4",
    source="our own: a block that is not waited for",
    unseen="up to 8,192 features",
)
def features_beyond_8192_are_not_summed() -> Iterator[None]:
    """What features from the 8,192nd on add is added after the result was read."""
    with four_bits(lambda call, x, weight, bias: call(x[..., :8192], weight[:, :8192], bias)):
        yield


@fault(
    "QUANT-4",
    FILE,
    "dequantized and 33-bnb-nf4 and not wide",
    source="our own: data_ptr and no strides",
    unseen="inputs that are contiguous",
)
def inputs_are_read_as_if_contiguous() -> Iterator[None]:
    """A view is walked as if it had memory of its own."""

    def change(call: Any, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        return call(x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride()), weight, bias)

    with four_bits(change):
        yield


@fault(
    "QUANT-4",
    FILE,
    "dequantized and 8-bnb-nf4 and not wide",
    source="our own: one token is told by x.shape[-2]",
    unseen="a step of up to four requests; prompts",
)
def a_batch_of_steps_is_its_first_four() -> Iterator[None]:
    """The kernel for one token takes a batch of them for four at most, and the fifth is answered as the first."""

    def change(call: Any, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        return call(x[torch.arange(len(x)) % 4] if x.shape[-2] == 1 else x, weight, bias)

    with four_bits(change):
        yield


@fault("QUANT-4", *INT8, source="our own: a largest value of 0, to divide by", unseen="padding that is not zero")
def token_of_zeros_is_nan() -> Iterator[None]:
    """A token whose features are all 0 has the scale 0, and comes out as 0 / 0."""

    def change(call: Any, x: Tensor, state: Any, bias: Any) -> Tensor:
        return call(x, bias=bias).masked_fill((x == 0).all(-1, keepdim=True), torch.nan)

    with eight_bits(change):
        yield
