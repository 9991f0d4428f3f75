"""A GPU that is not there, or goes away, is never green."""

import dataclasses

import pytest
import torch

from fixtures import environment
from fixtures.caching import unless_refused

ASK = ("suites/attention/test_accuracy.py", "-k", "mha-33-full and float32 and eager")


@pytest.fixture
def pretended_gpu(monkeypatch):
    """An environment that lists a GPU which no kernel can reach, as after the device has fallen off the bus."""
    real = environment.probe()
    fake = dataclasses.replace(real, gpus=(environment.Gpu("pretended", "9.0", 1),), gpu_reason="")
    monkeypatch.setattr(environment, "probe", lambda: fake)
    monkeypatch.setattr(environment, "context_is_alive", lambda device: False)


def test_without_a_gpu_the_upgrade_check_is_unverified_and_says_why(conformance, monkeypatch):
    real = environment.probe()
    monkeypatch.setattr(
        environment, "probe", lambda: dataclasses.replace(real, gpus=(), gpu_reason="no NVIDIA driver is loaded")
    )
    found = conformance("-m", "gpu")

    assert found.verdict.startswith("unverified: no GPU is usable: no NVIDIA driver is loaded"), found.printed
    assert found.code == 5


@pytest.mark.usefixtures("pretended_gpu")
def test_a_gpu_that_disappears_leaves_its_checks_unverified(conformance, monkeypatch):
    monkeypatch.setattr(environment, "device_is_alive", lambda device: False)
    found = conformance(*ASK)

    assert {(r.device, r.outcome) for r in found.records} == {("cpu", "passed"), ("cuda", "unverified")}, found.printed
    assert found.verdict.startswith("partial:")
    assert found.code == 6


@pytest.mark.usefixtures("pretended_gpu")
def test_a_run_of_the_gpu_alone_that_loses_it_is_unverified(conformance, monkeypatch):
    monkeypatch.setattr(environment, "device_is_alive", lambda device: False)
    found = conformance(*ASK[:1], "-m", "gpu")

    assert {r.outcome for r in found.records} == {"unverified"}
    assert found.verdict.startswith("unverified:")
    assert found.code == 5


@pytest.mark.usefixtures("pretended_gpu")
def test_a_check_that_breaks_the_context_of_a_healthy_gpu_failed(conformance, monkeypatch):
    monkeypatch.setattr(environment, "device_is_alive", lambda device: True)
    found = conformance(*ASK[:1], "-m", "gpu")

    count = {outcome: sum(r.outcome == outcome for r in found.records) for outcome in ("failed", "unverified")}
    assert count["failed"] == 1
    assert count["unverified"] == len(found.records) - 1 > 0
    assert found.code == 1


@pytest.mark.parametrize(
    ("error", "alive", "refused"),
    [
        (RuntimeError("not for this cache"), True, True),
        (RuntimeError("CUDA error: device-side assert triggered"), False, False),
        (torch.OutOfMemoryError("no room"), True, False),
    ],
    ids=["refusal", "broken context", "no room"],
)
def test_an_operation_that_breaks_the_gpu_or_finds_no_room_was_not_refused(monkeypatch, error, alive, refused):
    monkeypatch.setattr(environment, "context_is_alive", lambda device: alive)

    def run():
        raise error

    if refused:
        assert unless_refused(run, torch.ones(1))[1] == "RuntimeError: not for this cache"
        return
    with pytest.raises(type(error), match=str(error)):
        unless_refused(run, torch.ones(1))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("Found no NVIDIA driver on your system. Please check", "no NVIDIA driver is loaded"),
        ("The NVIDIA driver on your system is too old (found version 11040).", "the NVIDIA driver is too old"),
        ("No CUDA GPUs are available", "the driver shows no device"),
        ("CUDA error: no kernel image is available for execution on the device", "no kernels for this GPU"),
        ("something new", "something new"),
    ],
)
def test_why_there_is_no_gpu_is_said_in_words(error, told):
    assert told in environment._explain(error)
