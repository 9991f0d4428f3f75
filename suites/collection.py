"""Which checks a run collects: every subject in each dtype on each device, less what a subject declares not to take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fixtures.judgement import Unverified
from fixtures.subjects import Absent
from suites import checks, refusals, workers

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
    bench = bench_of(metafunc.config)
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
    _leave_out(metafunc, bench)


def _leave_out(metafunc: pytest.Metafunc, bench: Any) -> None:
    """What is refused anyway is left out before pytest makes an item of it: two in three, and a quarter of the time.

    One stays of each check, so that it is known to be there, and all of a subject that is claimed.
    """
    claimed = _claimed(bench)

    def reason(params: dict[str, Any]) -> str | None:
        subjects = [v for v in params.values() if hasattr(v, "refuses")]
        needed = any(isinstance(v, Absent) or v.name in claimed for v in subjects)
        return None if needed else _refusal(metafunc.definition, params)

    told = [(call, reason(call.params)) for call in metafunc._calls]
    if told and all(why for _, why in told):
        told[0] = told[0][0], None
    metafunc._calls = [call for call, why in told if not why]
    bench.not_here.update(why for _, why in told if why)
    bench.refused.update(f"{metafunc.definition.nodeid}[{call.id}]" for call, why in told if why)


def _claimed(bench: Any) -> set[str]:
    """Names of what the deployment file claims."""
    claims = bench.deployment.claims.values()
    return {name for names in claims for name in names} | {claim.name for claim in bench.deployment.measured}


def _is_for_later(subject: Any, depth: str) -> bool:
    return getattr(subject, "tier", depth) == "full" != depth


def _names(mark: pytest.Mark) -> list[str]:
    names = mark.args[0]
    return [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def bench_of(config: pytest.Config) -> Any:
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
    bench, claimed = bench_of(config), _claimed(bench_of(config))
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
    if looks and bench.served.release and any(map(is_real, items)):
        refusals.foreign_tokens(bench.served.release, bench.registry.subjects["models"]["served"])


def _asked_with(item: pytest.Item) -> Any:
    """What a check has in common with those that follow it, so that it is done once, and by one worker.

    Of a real model, who quantized it: it is loaded, and an area's texts are read to it. Of caches, the model and its
    dtype: a library builds kernels, or plans of them, for each length of a text.
    """
    params = _params(item)
    where = str(params.get("device"))
    if "quantizer" in params and is_real(item):
        return checks.area(item), params["quantizer"].name, where
    if "kv_cache" in params and "case" in params:
        return getattr(item, "function", item), params["case"].name, str(params.get("dtype")), where
    return item


def _thinned(bench: Any, items: list[pytest.Item]) -> list[pytest.Item]:
    """Of each check the first set of parameters for each subject on each device; none that takes minutes, or compiles.

    A small model stands for all, where there is one. What is owed and is not here stays, to be unverified.
    """
    chosen, asked = set(), set()
    for item in sorted(items, key=is_real):
        params = _params(item)
        about = [v.name for k, v in params.items() if hasattr(v, "refuses") and k != "case"]
        question = (getattr(item, "function", item), *about, str(params.get("device")))
        missing = REFUSED in item.stash or any(isinstance(v, Absent) for v in params.values())
        slow = item.get_closest_marker("takes_minutes") or any(getattr(v, "few", ()) for v in params.values())
        if missing or not (question in asked or slow):
            asked.add(question)
            chosen.add(item)
    bench.not_here["left out of tier smoke"] += len(items) - len(chosen)
    return [item for item in items if item in chosen]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if REFUSED in item.stash:
        raise Unverified(item.stash[REFUSED])


def is_real(item: pytest.Item) -> bool:
    """Whether a check asks a real model; numbers and tensors have a `real` of another kind."""
    return any(getattr(value, "real", False) is True for value in _params(item).values())


def _params(item: pytest.Item) -> dict[str, Any]:
    found: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    return found


def _subjects(item: pytest.Item) -> list[str]:
    return [v.name for v in _params(item).values() if hasattr(v, "refuses")]


def _refusal(item: pytest.Item, params: dict[str, Any]) -> str | None:
    for mark in item.iter_markers("capability"):
        if mark.args[0] not in bench_of(item.config).deployment.relied_on:
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
