"""What the checks ask for by name: subjects under test by parameter, inputs, truth, and a judge."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures import heap, inputs, meters, text
from fixtures.distances import worst_rows
from fixtures.judgement import Inconclusive, Judge, Undecided, Unverified
from fixtures.models import VOCABULARY
from fixtures.oracles import decoder
from fixtures.oracles.sublayers import backwards_linear, plain_linear
from fixtures.reach import Reader
from fixtures.references import References
from fixtures.subjects import Absent
from fixtures.tokenizing import tokenize, tokenizer_of
from suites import checks, collection
from suites.collection import bench_of, is_real

# Inputs are drawn so often at most, until the truth about them hangs on no rounding: 448 checks needed 8 at most.
DRAWS = 20

# Hooks: which checks there are, and which of them are unverified before they begin.
pytest_generate_tests = collection.pytest_generate_tests
pytest_collection_modifyitems = collection.pytest_collection_modifyitems
pytest_runtest_setup = collection.pytest_runtest_setup


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Any:
    """An area leaves room for what follows, and so does the last of some checks of real models."""
    result = yield
    area_ends = nextitem is None or checks.area(nextitem) != checks.area(item)
    if area_ends or nextitem.path != item.path:
        bench_of(item.config).shelf.forget(models=area_ends)
        heap.thaw()
    if area_ends or (is_real(item) and not is_real(nextitem)):
        heap.thaw()
        meters.give_back()
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A check whose inputs leave the truth to rounding is asked again: its generator draws others.

    The truth alone says so, whatever the subject answers.
    """
    judge = pyfuncitem.funcargs.get("judge")
    if judge is None:
        return None
    asked = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    for _ in range(DRAWS):
        try:
            pyfuncitem.obj(**asked)
            return True
        except Undecided:
            judge.start_over()
    raise Inconclusive(f"the truth hung on a rounding, {DRAWS} times over")


@pytest.fixture
def device(request: pytest.FixtureRequest, bench: Any) -> torch.device:
    """The device that the check runs on."""
    if isinstance(request.param, Absent):
        raise Unverified(request.param.reason)
    if bench.lost and request.param == "cuda":
        raise Unverified(bench.lost)
    return torch.device(request.param)


def _here(request: pytest.FixtureRequest) -> Any:
    if isinstance(request.param, Absent):
        raise Unverified(request.param.reason)
    return request.param


@pytest.fixture
def attention(request: pytest.FixtureRequest) -> Any:
    """An attention backend."""
    return _here(request)


@pytest.fixture
def own_kernels(attention: Any, device: torch.device) -> tuple[str, ...]:
    """Names, as patterns, that prove that the attention backend itself ran on the check's device."""
    return tuple(attention.kernels.get(device.type, ()))


@pytest.fixture
def kv_cache(request: pytest.FixtureRequest) -> Any:
    """A key-value cache."""
    return _here(request)


@pytest.fixture
def encoding(request: pytest.FixtureRequest) -> Any:
    """A positional encoding."""
    return _here(request)


@pytest.fixture
def quantizer(request: pytest.FixtureRequest) -> Any:
    """A quantizer."""
    return _here(request)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Any:
    """A model case."""
    return _here(request)


@pytest.fixture
def judge(request: pytest.FixtureRequest, bench: Any) -> Judge:
    """The judge of this check's promise."""
    return Judge(str(request.function.__doc__).split(":")[0].strip(), slacks=bench.deployment.slacks)


@pytest.fixture
def draw(request: pytest.FixtureRequest, bench: Any) -> torch.Generator:
    """Random numbers that depend on --seed and on the check, not on the device."""
    return inputs.generator(bench.seed, request.node.nodeid.removesuffix("-cuda]").removesuffix("-cpu]"))


@pytest.fixture
def make_qkv(draw: torch.Generator, dtype: torch.dtype, device: torch.device) -> Callable[..., inputs.Qkv]:
    """Queries, keys and values of a problem, in the check's dtype on its device."""
    return lambda problem: inputs.qkv(problem, dtype, device, draw)


@pytest.fixture
def model(bench: Any, case: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The case's model, loaded once a session."""
    return bench.shelf.model(case, dtype, device)


@pytest.fixture
def make_ids(bench: Any, case: Any, draw: torch.Generator, device: torch.device) -> Callable[[int, int], Tensor]:
    """Token ids `(batch, length)`: random ones for a seeded model, starts of documents for a served one.

    Another seed takes other documents.
    """

    def make(batch: int, length: int) -> Tensor:
        if case.real:
            every = text.documents()
            chosen = [every[(bench.seed * batch + index) % len(every)] for index in range(batch)]
            return torch.cat(tokenize(case, chosen, length)).to(device)
        return inputs.tokens(batch, length, VOCABULARY, draw).to(device)

    return make


@pytest.fixture
def truth(bench: Any, case: Any, judge: Judge) -> Callable[..., Tensor]:
    """Logits by the independent decoder: `truth(model, ids, dtype, positions=None)`."""

    def compute(model: Any, ids: Tensor, dtype: torch.dtype, positions: Tensor | None = None) -> Tensor:
        judge.evidence["oracle"] = bench.shelf.oracle(model)
        return bench.shelf.logits(case, model, ids, dtype, positions)

    return compute


@pytest.fixture
def some_ids(draw: torch.Generator, device: torch.device) -> Callable[[int, int], Tensor]:
    """Random token ids `(batch, length)` of a small model's vocabulary."""
    return lambda batch, length: inputs.tokens(batch, length, VOCABULARY, draw).to(device)


@pytest.fixture
def references(bench: Any) -> References:
    """The small trained models whose loss is known beyond their trained length."""
    return bench.references


@pytest.fixture
def saved(bench: Any, tmp_path: Path) -> Callable[[Any], Path]:
    """A checkpoint of a small model that declares an encoding."""

    def save(encoding: Any) -> Path:
        encoding.model(bench.seed).save_pretrained(tmp_path)
        return tmp_path

    return save


@pytest.fixture
def decoded() -> Callable[..., Tensor]:
    """Logits by the independent decoder, of a model that it describes: `decoded(model, ids, dtype, positions=None)`."""

    def compute(model: Any, ids: Tensor, dtype: torch.dtype, positions: Tensor | None = None) -> Tensor:
        return decoder.logits(model.config, model.state_dict(), ids, dtype=dtype, positions=positions)

    return compute


@pytest.fixture
def inside() -> Callable[..., decoder.Inside]:
    """What that decoder holds on its way, of each row the worse of two summations: `inside(model, ids, dtype)`.

    So that no row of a reference is exact by luck, as in `truth`.
    """

    def compute(model: Any, ids: Tensor, dtype: torch.dtype) -> decoder.Inside:
        golden, *found = decoder.Inside(), decoder.Inside(), decoder.Inside()
        ask = partial(decoder.logits, model.config, model.state_dict(), ids)
        ask(dtype=torch.float64, inside=golden)
        if dtype == torch.float64:
            return golden
        for linear, kept in zip((plain_linear, backwards_linear), found, strict=True):
            ask(dtype=dtype, linear=linear, inside=kept)
        there, back = found
        return decoder.Inside(
            *(
                [worst_rows(pair, truth) for *pair, truth in zip(a, b, c, strict=True)]
                for a, b, c in zip(_both(there), _both(back), _both(golden), strict=True)
            )
        )

    return compute


def _both(found: decoder.Inside) -> tuple[list[Tensor], list[Tensor]]:
    return found.hidden, found.weights


@pytest.fixture
def tokenizer(case: Any) -> Any:
    """The case's tokenizer."""
    return tokenizer_of(case)


@pytest.fixture
def tokenized(case: Any) -> Callable[[int | None], list[Tensor]]:
    """All documents of the frozen text, each cut to so many tokens, or whole: `(1, length)` int64."""
    return lambda length: tokenize(case, text.documents(), length)


@pytest.fixture
def reader(case: Any) -> Reader:
    """The case's tokenizer, and what it begins every text with."""
    tokenizer = tokenizer_of(case)
    return Reader(lambda said: tokenizer(said, add_special_tokens=False).input_ids, list(tokenizer("").input_ids))
