"""The oracle agrees with a healthy library, and with no other description than the one it has."""

import ast
import copy
import inspect
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from fixtures import inputs
from fixtures.engagement import is_linear
from fixtures.models import SMALL, VOCABULARY, seeded_model
from fixtures.oracles import decoder
from fixtures.oracles.architectures import DESCRIPTIONS, Architecture, describe
from fixtures.oracles.architectures.description import Experts, Latent, Number, number
from fixtures.oracles.sublayers import backwards_linear
from fixtures.shelf import Shelf
from fixtures.subjects import ModelCase

# Longer than every window, and short enough for thousands of runs.
BATCH = 4
LENGTH = 32
PADDING = 9

# Healthy libraries are 0.83 to 1.21 times as far from float64 as the plain float32 run of the oracle (5 seeds).
HEALTHY = 3.0
# A wrong description is this many times as far at least; the nearest, GELU by tanh or by erf, 157 times (5 seeds).
WRONG = 100.0

# transformers' eager Falcon adds ALiBi twice, to the scores and with the mask; its other path once, as its authors do.
IMPLEMENTATION = {"falcon-alibi": "sdpa"}

# Fields that say where a tensor is, or when a description holds: no choices of an architect.
NO_CHOICE = {"source", "names", "holds", "listed", "stacked", "router", "mlp", "query", "key_value"}

# Where a field cannot act: beside another kind of positions, without a window, without heads or an MLP of its own, and
# with one key head, which lies behind the queries in either fused layout.
IDLE = {
    "position_offset": lambda a: a.positions not in ("learned", "sinusoidal"),
    "rotary": lambda a: a.positions != "rope",
    "rotary_pairs": lambda a: a.positions != "rope",
    "rope": lambda a: a.positions != "rope",
    "alibi_rounding": lambda a: a.positions != "alibi",
    "alibi_scaled": lambda a: a.positions != "alibi",
    "alibi_exponent": lambda a: a.positions != "alibi",
    "windowed": lambda a: a.window is None,
    "qkv": lambda a: a.latent is not None or a.kv_heads == 1,
    "clip": lambda a: a.latent is not None,
    "qk_norm": lambda a: a.latent is not None,
    "gate": lambda a: a.experts is not None and a.experts.first == 0,
}

# What to put in the place of a number that a description does not have.
INSTEAD_OF_NONE = {"window": 12, "attention_cap": 2.0, "logit_cap": 2.0, "clip": 0.5}


@cache
def small(name: str) -> Any:
    architecture, declared, _ = SMALL[name]
    with warnings.catch_warnings(action="ignore"):  # the library's, while it is imported
        model = seeded_model(architecture, declared, 0)
    model.config._attn_implementation = IMPLEMENTATION.get(name, "eager")
    return model


def ids(name: str) -> torch.Tensor:
    return inputs.tokens(BATCH, LENGTH, VOCABULARY, inputs.generator(0, name))


@cache
def library(name: str) -> torch.Tensor:
    with torch.no_grad():
        return small(name)(ids(name), use_cache=False).logits


def oracle(name: str, dtype: torch.dtype = torch.float64, **more: Any) -> torch.Tensor:
    model = small(name)
    return decoder.logits(model.config, model.state_dict(), ids(name), dtype=dtype, **more)


def error(found: torch.Tensor, golden: torch.Tensor) -> float:
    return float((found.double() - golden.double()).norm() / golden.double().norm())


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A mask that hides a part of the second row, and the positions of the rest."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, :PADDING] = 0
    mask = mask if side == "left" else mask.flip(1)
    return mask, (mask.cumsum(1) - 1).clamp(min=0)


@pytest.mark.parametrize("name", SMALL)
def test_a_healthy_library_agrees(name):
    golden = oracle(name)

    assert error(library(name), golden) <= HEALTHY * error(oracle(name, torch.float32), golden)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SMALL)
def test_a_healthy_library_agrees_on_padded_rows(name, side):
    mask, positions = padded(side)
    golden, plain = (
        oracle(name, dtype, mask=mask, positions=positions)[mask.bool()] for dtype in (torch.float64, torch.float32)
    )
    takes = inspect.signature(small(name).forward).parameters
    given = {"position_ids": positions.clone()} if "position_ids" in takes else {}

    found = small(name)(ids(name), attention_mask=mask, use_cache=False, **given).logits[mask.bool()]

    assert error(found, golden) <= HEALTHY * error(plain, golden)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SMALL)
def test_a_padded_row_is_the_row_alone(name, side):
    mask, _ = padded(side)
    real = mask[1].bool()
    model = small(name)

    row = oracle(name, mask=mask)[1]
    alone = decoder.logits(model.config, model.state_dict(), ids(name)[1:, real], dtype=torch.float64)[0]

    assert row.isfinite().all()
    assert error(row[real], alone) < 1e-12


def choices(a: Architecture) -> Iterator[tuple[str, Any, Any]]:
    """Path, value and annotation of each field of a description that is a choice."""
    for part, prefix in ((a, ""), (a.experts, "experts."), (a.latent, "latent.")):
        for name, annotation in get_type_hints(type(part)).items() if is_dataclass(part) else ():
            if name not in NO_CHOICE:
                yield prefix + name, getattr(part, name), annotation


def acts(path: str, a: Architecture) -> bool:
    return not (path in IDLE and IDLE[path](a))


def changed(a: Architecture, path: str, value: Any) -> Architecture:
    if "." not in path:
        return replace(a, **{path: value})
    part, name = path.split(".")
    return replace(a, **{part: replace(getattr(a, part), **{name: value})})


@cache
def used() -> dict[str, set[Any]]:
    """Every value that some description gives to a choice."""
    found: dict[str, set[Any]] = {}
    for name in SMALL:
        for path, value, _ in choices(describe(small(name).config)):
            found.setdefault(path, set()).add(value)
    return found


def alternatives(path: str, value: Any, annotation: Any, config: Any) -> dict[str, Any]:
    """Other values of a choice: all of its kind, or all that any description has, and near ones of a number."""
    if path in ("experts", "latent"):
        return {} if value is None else {"None": None}
    if path == "activation":
        now = decoder.ACTIVATIONS[getattr(config, value, value)]
        one_name_each = {function: name for name, function in decoder.ACTIVATIONS.items() if function is not now}
        return {name: name for name in one_name_each.values()}
    kinds = {True, False} if annotation is bool else set()
    if get_origin(annotation) is Literal:
        kinds = set(get_args(annotation))
    others = {str(other): other for other in (kinds or used()[path]) - {value}}
    if annotation in (int, Number, Number | None):
        now = number(config, value)
        others = {label: other for label, other in others.items() if resolved(config, other) != now}
        others |= {f"near {i}": other for i, other in enumerate(near(path, now))}
    return others


def near(path: str, now: Any) -> list[Any]:
    """Numbers in the place of a number, or of none."""
    if now is None:
        return [INSTEAD_OF_NONE[path]]
    if "epsilon" in path:
        return [now + 0.01]
    return sorted({now + 1, now // 2} - {now}) if isinstance(now, int) else [now * 1.5]


def resolved(config: Any, source: Any) -> Any:
    """The number, or what it is called where this config has no such thing."""
    try:
        return number(config, source)
    except AttributeError:
        return source


def wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, float]]:
    """Each choice of a model's description turned into each other value: how far from the library that is."""
    config = small(name).config
    a, healthy = describe(config), error(oracle(name, torch.float32), oracle(name))
    for path, value, annotation in choices(a):
        for label, other in alternatives(path, value, annotation, config).items() if acts(path, a) else ():
            mutant = changed(a, path, other)
            with monkeypatch.context() as patch:
                patch.setattr(decoder, "describe", lambda config, mutant=mutant: mutant)
                try:
                    yield f"{path}: {label} instead of {value}", error(library(name), oracle(name)) / healthy
                except (KeyError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                    yield f"{path}: {label} instead of {value}", math.inf  # it cannot even be computed


@pytest.mark.parametrize("architecture", DESCRIPTIONS)
def test_another_description_disagrees(architecture, monkeypatch):
    """Whatever is changed in an architecture's description, one of its models is far off."""
    found: dict[str, float] = {}
    for name in (name for name in SMALL if SMALL[name][0] == architecture):
        for change, ratio in wrong(name, monkeypatch):
            found[change] = max(found.get(change, 0.0), ratio)

    assert found
    assert {change: ratio for change, ratio in found.items() if not ratio > WRONG} == {}


@pytest.mark.parametrize(
    "path",
    [
        prefix + f.name
        for prefix, kind in (("", Architecture), ("experts.", Experts), ("latent.", Latent))
        for f in fields(kind)
        if f.name not in NO_CHOICE
    ],
)
def test_every_choice_acts_in_some_model(path):
    """What `IDLE` lets rest in one architecture is tried in another."""
    found = [describe(small(name).config) for name in SMALL]

    assert any(path in [p for p, _, _ in choices(a)] and acts(path, a) for a in found)


def test_every_description_has_a_model():
    assert {architecture for architecture, _, _ in SMALL.values()} == set(DESCRIPTIONS)


def any_expert(names: Iterable[str]) -> set[str]:
    """Names of tensors; experts of a list are one, since no text chooses all of them."""
    return {re.sub(r"experts\.\d+", "experts.*", name) for name in names}


@pytest.mark.parametrize("name", SMALL)
def test_every_tensor_is_read(name):
    """What a description does not know of would otherwise be left out in silence."""
    read = set()

    class Recorded(dict):
        def __getitem__(self, key):
            read.add(key)
            return super().__getitem__(key)

    weights = Recorded(small(name).state_dict())
    decoder.logits(small(name).config, weights, ids(name), dtype=torch.float32)

    assert any_expert(weights) - any_expert(read) == set()


@pytest.mark.parametrize("name", SMALL)
def test_every_linear_layer_can_be_exchanged(name):
    """A quantization oracle sees the layers that quantizers see, but for heads and routers."""
    model, called = small(name), set()

    def linear(name, x, weight):
        called.add(name)
        return x @ weight.mT

    decoder.logits(model.config, model.state_dict(), ids(name), dtype=torch.float32, linear=linear)

    layers = {name for name, module in model.named_modules() if is_linear(module)}
    kept = {name for name in layers if name.rsplit(".", 1)[-1] in ("lm_head", "embed_out", "gate")}
    assert any_expert(called) == any_expert(layers - kept)


@pytest.mark.parametrize("name", SMALL)
def test_every_model_is_covered(name):
    assert decoder.covers(small(name).config)


SPIRAL = {"rope_type": "spiral", "rope_theta": 1e4}
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("llama-gqa", "hidden_act", "quick_gelu"),
        ("llama-gqa", "model_type", "nemotron"),
        pytest.param("llama-gqa", "rope_parameters", SPIRAL, id="llama-gqa-spiral"),
        pytest.param("llama-gqa", "rope_parameters", PARTIAL, id="llama-gqa-partial"),
        ("llama-gqa", "is_causal", False),
        ("qwen3-norm", "layer_types", ["full_attention", "chunked_attention"]),
        ("gemma2-softcap", "use_bidirectional_attention", True),
        ("gemma3-layers", "attn_logit_softcapping", 50.0),
        ("falcon-grouped", "parallel_attn", False),
        ("bloom-alibi", "apply_residual_connection_post_layernorm", True),
        ("mpt-alibi", "logit_scale", 0.5),
        ("mpt-alibi", "attn_config.qk_ln", True),
        ("mpt-alibi", "attn_config.alibi", False),
        ("gpt2", "add_cross_attention", True),
        ("gptj-neighbours", "rotary_dim", None),
        ("opt-pre", "layer_norm_elementwise_affine", False),
        ("xglm-sinusoids", "pad_token_id", 2),
        ("deepseek-mla", "topk_method", "noaux_tc"),
        ("deepseek-mla", "norm_topk_prob", True),
        ("deepseek-v3", "scoring_func", "softmax"),
    ],
)
def test_what_is_not_described_is_not_covered(name, path, value):
    config = copy.deepcopy(small(name).config)
    *parents, last = path.split(".")
    vars(getattr(config, parents[0]) if parents else config)[last] = value  # past the config's own checks

    assert not decoder.covers(config)


@pytest.mark.parametrize("name", SMALL)
def test_the_oracle_shares_no_arithmetic_with_the_library(name, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the oracle called what is on trial")

    for function in "linear scaled_dot_product_attention layer_norm rms_norm embedding softmax silu gelu".split():
        monkeypatch.setattr(torch.nn.functional, function, refuse)

    oracle(name, torch.float32)


def test_the_oracle_imports_no_library():
    folder = Path(decoder.__file__).parent
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for file in (folder / "decoder.py", folder / "sublayers.py", *(folder / "architectures").glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }

    assert not {name for name in imported if name.split(".")[0] in ("transformers", "torch.nn")}


def test_each_row_of_a_small_float32_reference_is_the_worse_of_two_orders_of_summation():
    name, ids = "mistral-window", inputs.tokens(BATCH, LENGTH, VOCABULARY, torch.Generator().manual_seed(0))
    model, shelf = seeded_model(*SMALL[name][:2], seed=0), Shelf()
    case = ModelCase(name, "mistral", lambda dtype, device: model)
    ask = partial(decoder.logits, model.config, model.state_dict(), ids, dtype=torch.float32)

    golden, found = (shelf.logits(case, model, ids, dtype) for dtype in (torch.float64, torch.float32))

    errors = [(x - golden).norm(dim=-1) for x in (ask(), ask(linear=backwards_linear), found)]
    assert torch.equal(errors[2], torch.maximum(errors[0], errors[1]))
    assert (errors[0] > errors[1]).any()
    assert (errors[1] > errors[0]).any()
    assert max(e.norm() / golden.norm() for e in errors) < 1e-5
