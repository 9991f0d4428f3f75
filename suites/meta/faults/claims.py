"""Faults that make a claim untrue which is true without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from suites.meta.faults import after_loading, fault, patches

SMALL = ("--shape", "fixtures/deployments/gpt-bigcode-small.json")
MEMORY, SPEED, BEHAVIOUR = (f"claims/test_{name}.py" for name in ("memory", "speed", "behaviour"))


def claim(measure: str, **said: object) -> str:
    """One claim of a deployment file."""
    lines = {"name": "it", "says": "it is so", "measure": measure, **said}
    told = "\n".join(f"{key} = {str(value).lower() if value is True else repr(value)}" for key, value in lines.items())
    return f"[[claim]]\n{told}\n"


WEIGHTS = claim("weight bytes", dtype="bfloat16", at_most="4.87 MB")
NF4 = claim("weight bytes", dtype="bfloat16", quantizer="bnb-nf4", at_most="2.89 MB")
LONG = claim("added memory", dtype="bfloat16", context=800, at_most="8 MB")
CACHE = claim("kv bytes per token", dtype="bfloat16", equals="512 B")
AGREES = claim("top-1 agreement", quantizer="bfloat16", context=8, at_least="80 %")
FUSED = claim("speed ratio", attention="sdpa", context=800, phase="prefill", at_least=0.4) + (
    'against = { attention = "eager" }\n'
)
FLAT = claim("speed ratio", context=600, new_tokens=4, phase="decode", at_least=0.15) + "against = { context = 40 }\n"
SAME = claim("determinism", equals="same bits")
SDPA = claim("attn_implementation", equals="sdpa")


@fault(
    "CLAIM-1",
    MEMORY,
    "weights",
    source="https://github.com/ROCm/vllm/pull/1213",
    unseen="untied models",
    options=SMALL,
    states=WEIGHTS,
)
def claimed_head_is_duplicated() -> Iterator[None]:
    """The output head owns a second copy of the embedding."""

    def change(model: Any) -> None:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)

    with after_loading(change):
        yield


@fault(
    "CLAIM-1",
    MEMORY,
    "weights",
    source="https://github.com/pytorch/torchchat/issues/1362",
    unseen="accuracy: it is better",
    options=SMALL,
    states=NF4,
)
def claimed_layers_are_not_quantized() -> Iterator[None]:
    """The layers that take most of the bytes stay in full precision."""
    from suites.meta.faults.quantization import _not_converted

    with _not_converted(lambda names: [*names, "c_fc", "c_proj"]):
        yield


@fault(
    "CLAIM-2",
    MEMORY,
    "request",
    source="https://github.com/huggingface/transformers/pull/31292",
    unseen="short prompts",
    options=SMALL,
    states=LONG,
)
def logits_of_every_position_are_computed() -> Iterator[None]:
    """A prompt's probabilities and their logarithms are computed in float32 for every position, to keep the last."""

    def change(model: Any) -> None:
        def forward(module: Any, args: Any, out: Any) -> None:
            logits = model.lm_head(out[0]).float()
            logarithms = logits.log_softmax(-1)
            logarithms.exp()

        model.transformer.register_forward_hook(forward)

    with after_loading(change):
        yield


@fault(
    "CLAIM-2",
    MEMORY,
    "request",
    source="our own: a mask that no fused kernel takes",
    unseen="short prompts",
    options=SMALL,
    states=LONG,
)
def scores_are_materialised() -> Iterator[None]:
    """Fused attention is asked for, and all scores are held at once."""
    with patches.kernel(patches.math_answers):
        yield


@fault(
    "CLAIM-3",
    MEMORY,
    "cache",
    source="https://github.com/meta-pytorch/torchtune/issues/38",
    unseen="MHA",
    options=SMALL,
    states=CACHE,
)
def claimed_cache_stores_every_query_head() -> Iterator[None]:
    """Keys and values are repeated before they are cached."""

    def change(original: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        keys, values = original(layer, k.repeat_interleave(4, 1), v.repeat_interleave(4, 1), *args, **more)
        return keys[:, ::4], values[:, ::4]

    with patches.layers(change, "DynamicLayer"):
        yield


@fault(
    "CLAIM-3",
    MEMORY,
    "cache",
    source="our own: a cache that keeps float32 for safety",
    unseen="float32 models",
    options=SMALL,
    states=CACHE,
)
def claimed_cache_keeps_float32() -> Iterator[None]:
    """Keys and values are cached in float32 under a model of less."""

    def change(original: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        keys, values = original(layer, k.float(), v.float(), *args, **more)
        return keys.to(k.dtype), values.to(v.dtype)

    with patches.layers(change, "DynamicLayer"):
        yield


@fault(
    "CLAIM-4",
    "claims/test_agreement.py",
    "agrees",
    source="our own: a checkpoint that went through another one",
    unseen="dtypes and bytes",
    states=AGREES,
)
def sixteen_bits_went_through_eight() -> Iterator[None]:
    """Weights that are served in bfloat16 were rounded to float8 before."""

    def change(model: Any) -> None:
        for parameter in model.parameters() if model.dtype == torch.bfloat16 else ():
            parameter.copy_(parameter.to(torch.float8_e5m2))

    with torch.no_grad(), after_loading(change):
        yield


@fault(
    "CLAIM-4",
    "claims/test_agreement.py",
    "agrees",
    source="https://github.com/deepspeedai/DeepSpeed/pull/3433",
    unseen="dtypes and bytes",
    states=AGREES,
)
def one_projection_has_the_scale_of_another() -> Iterator[None]:
    """One layer's output projection is off by a factor where the model is served in bfloat16."""

    def change(model: Any) -> None:
        if model.dtype == torch.bfloat16:
            model.model.layers[5].mlp.down_proj.weight.mul_(3)

    with torch.no_grad(), after_loading(change):
        yield


@fault(
    "CLAIM-5",
    SPEED,
    "speed",
    source="our own: a kernel that is planned anew at each call",
    unseen="the numbers: they are right",
    options=SMALL,
    states=FUSED,
)
def fused_attention_is_slow() -> Iterator[None]:
    """Fused attention takes many times as long as it needs."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        for _ in range(100 if q.device.type == "cpu" else 600):  # on a GPU a few calls hide behind launches
            call(q, k, v, **more)
        return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault(
    "CLAIM-5",
    SPEED,
    "speed",
    source="https://github.com/huggingface/transformers/issues/30860",
    unseen="short contexts",
    options=SMALL,
    states=FLAT,
)
def steps_cost_the_square_of_the_context() -> Iterator[None]:
    """Each step does work for every pair of tokens in the cache."""

    def change(original: Any, layer: Any, k: Tensor, v: Tensor, *args: Any, **more: Any) -> Any:
        keys, values = original(layer, k, v, *args, **more)
        table = keys.float().repeat(1, 1, 1 if keys.device.type == "cpu" else 16, 1)  # enough to do for a GPU
        for _ in range(240):
            table @ table.mT
        return keys, values

    with patches.layers(change, "DynamicLayer"):
        yield


@fault(
    "CLAIM-6",
    BEHAVIOUR,
    "deterministic",
    source="https://github.com/pytorch/pytorch/issues/75240",
    unseen="a single run",
    options=SMALL,
    states=SAME,
)
def sums_are_formed_in_any_order() -> Iterator[None]:
    """A product's last bits differ from call to call, as with atomic additions."""

    def change(model: Any) -> None:
        def forward(_: Any, args: Any, out: Tensor) -> Tensor:
            return out * (1 + torch.randn_like(out) * 2**-7)

        model.transformer.h[0].mlp.register_forward_hook(forward)

    with after_loading(change):
        yield


@fault(
    "CLAIM-6",
    BEHAVIOUR,
    "deterministic",
    source="our own: a scale that is learned while serving",
    unseen="the first request",
    options=SMALL,
    states=SAME,
)
def an_answer_depends_on_earlier_ones() -> Iterator[None]:
    """A norm remembers what it saw in earlier requests."""

    def change(model: Any) -> None:
        def forward(module: Any, args: Any, out: Tensor) -> Tensor:
            module.calls = getattr(module, "calls", 0) + 1
            return out * (1 + module.calls / 64)

        model.transformer.ln_f.register_forward_hook(forward)

    with after_loading(change):
        yield


@fault(
    "CLAIM-7",
    BEHAVIOUR,
    "attention",
    source="https://github.com/huggingface/transformers/issues/28005",
    unseen="the numbers: they are right",
    options=SMALL,
    states=SDPA,
)
def model_is_loaded_with_eager_attention() -> Iterator[None]:
    """Loading falls back to eager attention without a word."""
    with after_loading(lambda model: model.set_attn_implementation("eager")):
        yield


@fault(
    "CLAIM-7",
    BEHAVIOUR,
    "attention",
    source="our own: a patch of the interface that was meant for debugging",
    unseen="a look at the config",
    options=SMALL,
    states=SDPA,
)
def eager_attention_runs_as_sdpa() -> Iterator[None]:
    """The config says sdpa, and eager attention runs under that name."""
    with _eager(lambda q: True):
        yield


def _eager(when: Callable[[Tensor], bool]) -> AbstractContextManager[None]:
    """GPT-BigCode's eager attention under the name of another. when(queries) -> whether."""
    from transformers.models.gpt_bigcode.modeling_gpt_bigcode import eager_attention_forward

    def change(
        forward: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **more: Any
    ) -> Any:
        answers = eager_attention_forward if when(q) else forward
        return answers(module, q, k, v, mask, scaling=scaling, **more)

    return patches.interface(change)


@fault(
    "CLAIM-6",
    BEHAVIOUR,
    "deterministic",
    source="our own: a workspace that only grows, and decides in how many parts sums are formed",
    unseen="one request, over and over",
    options=SMALL,
    states=SAME,
)
def an_answer_depends_on_the_longest_request() -> Iterator[None]:
    """What is computed depends on how long the longest request so far was."""
    longest = [0]

    def change(model: Any) -> None:
        def forward(_: Any, args: Any, out: Tensor) -> Tensor:
            longest[0] = max(longest[0], out.shape[1])
            return out * (1 + longest[0] / 1024)

        model.transformer.ln_f.register_forward_hook(forward)

    with after_loading(change):
        yield


@fault(
    "CLAIM-7",
    BEHAVIOUR,
    "attention",
    source="our own: no fused kernel for a single query",
    unseen="prompts",
    options=SMALL,
    states=SDPA,
)
def steps_run_eager_as_sdpa() -> Iterator[None]:
    """Prompts run sdpa, and steps eager attention, under one name."""
    with _eager(lambda q: q.shape[2] == 1):
        yield
