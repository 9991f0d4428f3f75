"""A check that ends its process is a record, and the others still run."""

import os
import tempfile
from types import SimpleNamespace

import pytest

from fixtures import environment
from suites import ending, workers
from suites.meta.conftest import FAILS, PASSES
from suites.meta.test_report import RECORD

KILLS = '''
    def test_kills(judge):
        """TEST-2: one MUST be two."""
        import os, signal
        os.kill(os.getpid(), signal.SIGSEGV)
'''
HANGS = '''
    def test_hangs(judge):
        """TEST-3: it MUST end."""
        import ctypes
        ctypes.PyDLL(None).sleep(60)  # and holds the interpreter
'''
READS = '''
    def test_reads(judge):
        """TEST-4: a worker MUST NOT read the weights through, which may take minutes."""
        from fixtures import served
        judge.exactly("files of weights read here", served._gguf.cache_info().misses, 0)
'''
GPU = [SimpleNamespace(name="H100"), SimpleNamespace(name="H100"), SimpleNamespace(name="A2")]


def test_a_check_that_ends_its_process_failed_and_the_others_run(verdict_of, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = verdict_of([KILLS, PASSES, HANGS, FAILS], "", "-n1", "--timeout=2")

    told = {r.promise: r for r in found.records if r.crash}
    assert found.verdict.startswith("non-conformant: 1 passed, 3 failed ("), found.printed
    assert found.code == 1
    assert "the process ended while this check ran\nFatal Python error: Segmentation fault" in told["TEST-2"].message
    assert "the process was ended at the check's time limit of 2 s\nTimeout" in told["TEST-3"].message
    assert {r.promise for r in found.records if not r.crash} == {"TEST-1", "TEST-2"}
    assert not [*tmp_path.glob("spiritlevel-*")]


def test_a_test_that_holds_no_promise_and_ends_its_process_fails(verdict_of):
    found = verdict_of([PASSES, KILLS.replace("(judge)", "()").replace("TEST-2: ", "")], "", "-n1")

    assert found.verdict.startswith("partial: 1 passed")
    assert "errors outside the checks" in found.verdict
    assert "Fatal Python error: Segmentation fault" in found.printed
    assert found.code == 6


def test_two_workers_come_to_what_one_process_comes_to(conformance):
    ask = "suites/memory/test_kv_cache.py", "-k", "llama"
    one, two = conformance(*ask), conformance(*ask, "-n2")

    assert two.verdict == one.verdict
    assert {r.check: r.outcome for r in two.records} == {r.check: r.outcome for r in one.records}
    assert [r.environment for r in two.records] == [r.environment for r in one.records]


def test_the_served_model_is_read_by_one_process(verdict_of):
    assert verdict_of([READS], "", "-n2").code == 0
    assert verdict_of([READS]).code == 1


def test_what_measures_time_is_refused_in_workers(verdict_of, monkeypatch):
    monkeypatch.setattr(workers, "ALONE", {"checks"})
    found = verdict_of([PASSES], "", "-n1")

    assert found.code == 4
    assert "checks measures time: run it without -n" in found.printed


@pytest.mark.parametrize(("broken", "ends"), [(False, False), (True, True)])
def test_a_worker_ends_itself_where_a_check_broke_its_context(monkeypatch, broken, ends):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    bench = SimpleNamespace(broken=False)
    running = workers.Worker(bench, {}).pytest_runtest_protocol()

    next(running)
    bench.broken = broken
    with pytest.raises(StopIteration):
        running.send(True)

    assert left == [1] * ends


def test_a_check_that_was_recorded_before_its_process_ended_is_not_recorded_twice():
    run = SimpleNamespace(records=[RECORD])
    controller = workers.Controller(None, None, run, None, items={RECORD.check: None}, words=None)
    report = SimpleNamespace(outcome="failed", when="???")

    controller.pytest_handlecrashitem(RECORD.check, report)

    assert report == SimpleNamespace(outcome="passed", when="teardown")


@pytest.mark.parametrize(("alive", "outcome"), [(True, "failed"), (False, "unverified")])
def test_a_process_that_ended_with_its_gpu_failed_nothing(monkeypatch, alive, outcome):
    monkeypatch.setattr(environment, "device_is_alive", lambda device: alive)

    assert ending.dead("the process ended", {"device": "cuda"}).outcome == outcome
    assert ending.dead("the process ended", {"device": "cpu"}).outcome == "failed"


@pytest.mark.parametrize(
    ("count", "gpus", "visible", "found"),
    [
        (2, 0, "", [None, None]),
        (2, 1, "", [None, None]),
        (3, 2, "", ["0", "1", "0"]),
        (2, 2, "5,3", ["5", "3"]),
        (2, 3, "", ["0", "1"]),
    ],
)
def test_each_worker_sees_one_gpu_of_one_kind(count, gpus, visible, found):
    shares = workers.shares(count, tuple(GPU[:gpus]), {"CUDA_VISIBLE_DEVICES": visible})

    assert [share.get("CUDA_VISIBLE_DEVICES") for share in shares] == found


def test_a_worker_that_takes_a_dead_ones_place_finds_our_options():
    given = ["-m", "gpu", "--report", "runs/a", "--model=m", "-n", "4", "--tier", "full", "--policy"]
    told = ["-m", "gpu", "--report=runs/a", "--model=m", "-n", "4", "--tier", "full", "--policy"]

    assert workers.joined(given) == told
    assert workers.joined(["--report", "-q"]) == ["--report", "-q"]


def test_every_option_that_takes_a_path_is_kept_beside_it(pytestconfig):
    ours = pytestconfig._parser.getgroup("spiritlevel").options
    paths = {name for option in ours if option.attrs().get("type") not in (None, int) for name in option.names()}

    assert paths | {"--model"} == workers.PATHS
