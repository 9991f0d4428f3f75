"""What the checks ask for by name: subjects under test by parameter, inputs, truth, and a judge."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures import inputs, meters, text
from fixtures.deployment import BadInput
from fixtures.judgement import Judge, Unverified
from fixtures.models import VOCABULARY
from fixtures.oracles import decoder
from fixtures.reach import Reader
from fixtures.references import References
from fixtures.soundness import check_tokens
from fixtures.subjects import Absent
from suites import checks, workers

REFUSED = pytest.StashKey[str]()
LATER = "of tier full: ask for it with --tier full"

# What a check calls a subject -> its kind in the registry and in a deployment's claims.
KINDS = {
    "attention": "attention",
    "kv_cache": "kv_caches",
    "encoding": "positions",
    "quantizer": "quantizers",
    "case": "models",
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.hookimpl(trylast=True)  # after the marks, so that the device ends every id
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every subject of each kind that a check asks for, in each dtype, on each device."""
    bench = _bench(metafunc.config)
    claims = bench.deployment.claims
    given = {name for mark in metafunc.definition.iter_markers("parametrize") for name in _names(mark)}
    for name, kind in KINDS.items():
        if name in metafunc.fixturenames and name not in given:
            subjects = bench.registry.of(kind, claims.get(kind, ()))
            subjects += bench.served.absent if kind == "models" else []
            if kind == "models" and "claim" in metafunc.fixturenames:
                subjects = [bench.audited]
            depth = metafunc.config.getoption("tier")
            now = [s for s in subjects if not _is_for_later(s, depth) or s.name in claims.get(kind, ())] or subjects
            bench.not_here[LATER] += len(subjects) - len(now)
            metafunc.parametrize(name, now, ids=[s.name for s in now], indirect=True)
    if "claim" in metafunc.fixturenames and "claim" not in given:
        (mark,) = metafunc.definition.iter_markers("capability")
        stated = bench.claims(mark.args[0])
        metafunc.parametrize("claim", stated, ids=[c.name for c in stated])
    if "dtype" in metafunc.fixturenames and "dtype" not in given:
        metafunc.parametrize("dtype", DTYPES, ids=[_short(d) for d in DTYPES])
    if "device" in metafunc.fixturenames:
        devices = _devices(bench)
        if metafunc.config.option.markexpr == "gpu":
            devices = [d for d in devices if d.marks] or devices
        metafunc.parametrize("device", devices, indirect=True)


def _is_for_later(subject: Any, depth: str) -> bool:
    return getattr(subject, "tier", depth) == "full" != depth


def _names(mark: pytest.Mark) -> list[str]:
    names = mark.args[0]
    return [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bench(config: pytest.Config) -> Any:
    """The run's state, as the wiring in the root's conftest.py registered it."""
    return config.pluginmanager.get_plugin("spiritlevel-bench")


def _devices(bench: Any) -> list[Any]:
    here = bench.environment.devices
    claimed = [*bench.deployment.claims.get("devices", ()), *["cuda"] * bench.environment.gpu_expected]
    missing = [d for d in dict.fromkeys(claimed) if d not in here]
    found = [pytest.param(d, id=d, marks=[pytest.mark.gpu] if d == "cuda" else []) for d in here]
    return found + [
        pytest.param(Absent(d, f"{d} is owed here: {bench.explain() or 'there is none'}"), id=d, marks=pytest.mark.gpu)
        for d in missing
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What a subject declares not to take is not collected; what is absent is asked for once a promise, or claim.

    A subject that is claimed and takes nothing of what is here is asked for too, and ends unverified.
    """
    bench = _bench(config)
    claimed = {name for names in bench.deployment.claims.values() for name in names}
    claimed |= {claim.name for claim in bench.deployment.measured}
    reasons = {item: _refusal(item, _params(item)) for item in items}
    tried = {name for item in items if not reasons[item] for name in _subjects(item)}
    kept, asked = [], set()
    for item in items:
        owed = [name for name in _subjects(item) if name in claimed - tried]
        absent = [v.name for v in _params(item).values() if isinstance(v, Absent)]
        params = _params(item)
        once = (getattr(item, "function", item), *owed, *absent, str(params.get("device")), str(params.get("claim")))
        if (reasons[item] and not owed) or ((owed or absent) and once in asked):
            bench.not_here[reasons[item] or "absent"] += 1
            continue
        if owed and reasons[item]:
            item.stash[REFUSED] = f"{', '.join(owed)} is claimed, and cannot be tried here: {reasons[item]}"
        asked.add(once)
        kept.append(item)
    kept = _thinned(bench, kept) if config.getoption("tier") == "smoke" else kept
    first: dict[Any, int] = {}
    places = {item: first.setdefault(_asked_with(item), place) for place, item in enumerate(kept)}
    items[:] = bench.applicable = sorted(kept, key=places.__getitem__)
    # Nothing is converted or read for a list of checks, and workers are begun by a process that has seen to it.
    looks = not config.option.collectonly and not workers.is_worker(config)
    if looks and bench.served.release and any(map(_is_real, items)):
        _refuse_foreign_tokens(bench.served.release, bench.registry.subjects["models"]["served"])


def _asked_with(item: pytest.Item) -> Any:
    """What a check has in common with those that follow it, so that it is done once, and by one worker.

    Of a real model, who quantized it: it is loaded, and an area's texts are read to it. Of caches, the model and its
    dtype: a library builds kernels, or plans of them, for each length of a text.
    """
    params = _params(item)
    where = str(params.get("device"))
    if "quantizer" in params and _is_real(item):
        return checks.area(item), params["quantizer"].name, where
    if "kv_cache" in params and "case" in params:
        return getattr(item, "function", item), params["case"].name, str(params.get("dtype")), where
    return item


def _refuse_foreign_tokens(release: Any, case: Any) -> None:
    """Each check of the served model would raise, or worse, be about padding."""
    try:
        tokenizer = _tokenizer(case.checkpoint())
    except Unverified:
        return  # each check says so
    ids = {token for said in text.documents() for token in tokenizer(said, add_special_tokens=False).input_ids}
    try:
        check_tokens(f"--model {release.path}", ids, case.config())
    except BadInput as error:
        raise pytest.UsageError(str(error)) from error


def _thinned(bench: Any, items: list[pytest.Item]) -> list[pytest.Item]:
    """Of each check the first set of parameters for each subject on each device; none that takes minutes.

    A small model stands for all, where there is one. What is owed and is not here stays, to be unverified.
    """
    chosen, asked = set(), set()
    for item in sorted(items, key=_is_real):
        params = _params(item)
        about = [v.name for k, v in params.items() if hasattr(v, "refuses") and k != "case"]
        question = (getattr(item, "function", item), *about, str(params.get("device")))
        missing = REFUSED in item.stash or any(isinstance(v, Absent) for v in params.values())
        if missing or not (question in asked or item.get_closest_marker("takes_minutes")):
            asked.add(question)
            chosen.add(item)
    bench.not_here["left out of tier smoke"] += len(items) - len(chosen)
    return [item for item in items if item in chosen]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if REFUSED in item.stash:
        raise Unverified(item.stash[REFUSED])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Any:
    """A check of a real model leaves room for the next, and so do a file of checks and an area."""
    result = yield
    ends = nextitem is None or nextitem.path != item.path
    if ends:
        _bench(item.config).shelf.forget(models=nextitem is None or checks.area(nextitem) != checks.area(item))
    if ends or _is_real(item):
        meters.give_back()
    return result


def _is_real(item: pytest.Item) -> bool:
    """Whether a check asks a real model; numbers and tensors have a `real` of another kind."""
    return any(getattr(value, "real", False) is True for value in _params(item).values())


def _params(item: pytest.Item) -> dict[str, Any]:
    found: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    return found


def _subjects(item: pytest.Item) -> list[str]:
    return [v.name for v in _params(item).values() if hasattr(v, "refuses")]


def _refusal(item: pytest.Item, params: dict[str, Any]) -> str | None:
    for mark in item.iter_markers("capability"):
        if mark.args[0] not in _bench(item.config).deployment.relied_on:
            return f"{mark.args[0]} is not claimed"
    if workers.involved(item.config) and checks.area(item) in workers.ALONE:
        return f"{checks.area(item)} is measured in a run without workers"
    device, dtype = params.get("device", "cpu"), params.get("dtype")
    depth = item.config.getoption("tier")
    for subject in params.values():
        if _is_for_later(subject, depth):
            return LATER
        if not hasattr(subject, "refuses") or subject is device:
            continue
        declared = vars(subject) | dict(getattr(subject, "declared", {}))
        for mark in item.iter_markers("applies"):
            for key, wanted in mark.kwargs.items():
                if key in declared and declared[key] not in wanted:
                    return f"{subject.name} has {key} {declared[key]}"
        reason: str | None = subject.refuses(getattr(device, "name", device), dtype, params)
        if reason:
            return reason
    return None


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
def tokenizer(case: Any) -> Any:
    """The case's tokenizer."""
    return _tokenizer(case.checkpoint())


@pytest.fixture
def tokenized(case: Any) -> Callable[[int | None], list[Tensor]]:
    """All documents of the frozen text, each cut to so many tokens, or whole: `(1, length)` int64."""
    return lambda length: tokenize(case, text.documents(), length)


@pytest.fixture
def reader(case: Any) -> Reader:
    """The case's tokenizer, and what it begins every text with."""
    tokenizer = _tokenizer(case.checkpoint())
    return Reader(lambda said: tokenizer(said, add_special_tokens=False).input_ids, list(tokenizer("").input_ids))


def tokenize(case: Any, documents: list[str], length: int | None) -> list[Tensor]:
    """Each document's first `length` tokens, `(1, length)` int64. Raises Unverified where one has not so many."""
    tokenizer = _tokenizer(case.checkpoint())
    found = [tokenizer(d, return_tensors="pt", add_special_tokens=False).input_ids[:, :length] for d in documents]
    if length and (shortest := min(ids.shape[1] for ids in found)) < length:
        raise Unverified(f"of each document {length:,} tokens are wanted, and one has {shortest:,}: ask for no more")
    return found


@cache
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # what is missing or broken is told in a dozen ways, such as a package that is wanted
        raise Unverified(f"{folder.name} has no tokenizer that can be read: {error}") from error
    if not found("text").input_ids:
        raise Unverified(f"{folder.name} has no tokenizer: put its tokenizer.json beside the weights")
    return found
