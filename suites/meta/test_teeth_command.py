"""`python -m suites.meta.teeth`: who was seen to notice what, and why not, whatever happens on the way."""

import json
import multiprocessing
import os
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from fixtures import folders
from reports import render, teeth
from reports.record import Record
from suites.meta import asking
from suites.meta import teeth as command
from suites.meta.faults import FAULTS, Fault, swapped
from suites.meta.faults.equivalent import EQUIVALENT

SEEN = "alibi_slopes_are_one_step_too_steep"
CHECKS = FAULTS[SEEN].checks

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, of pytest's own threads


@contextmanager
def nothing():
    yield


@contextmanager
def raising():
    from transformers.models.bloom import modeling_bloom

    def build(*args, **more):
        raise RuntimeError("out of luck")

    with swapped(modeling_bloom, "build_alibi_tensor", build):
        yield


@contextmanager
def lacking():
    raise AttributeError("no such function here")
    yield


@contextmanager
def littering():
    folders.temporary()
    yield


@contextmanager
def killing():
    os.kill(os.getpid(), signal.SIGKILL)
    yield


KNOWN = Record("a::b", "POS-2", "it MUST", "positions", "waived", waiver={"reason": "not mended there"})
FAILED = Record("a::c", "POS-2", "it MUST", "positions", "failed", message="POS-2: it MUST\nout of luck")


def test_what_a_stack_is_known_to_fail_shows_no_fault():
    end = asking.end_of(FAULTS[SEEN], [KNOWN], [], "", injected=True)

    assert (end["outcome"], end["why"]) == ("not applicable here", "known to fail on this stack: not mended there")


def test_a_known_failure_excuses_no_failure_beside_it():
    end = asking.end_of(FAULTS[SEEN], [KNOWN, FAILED], [], "", injected=True)

    assert (end["outcome"], end["why"]) == ("healthy side did not pass", "out of luck")
    assert end["alarms"] == ["a::c: out of luck"]


def test_a_fault_that_was_injected_is_judged_whatever_its_run_said():
    healthy = [Record("positions::b", "POS-2", "it MUST", "positions", "passed")]

    end = asking.end_of(FAULTS[SEEN], healthy, [], "it cannot be written: no space is left", injected=True)

    assert (end["outcome"], end["why"]) == ("crashed", "no check was run")


@pytest.mark.parametrize(("asked", "devices"), [("", ["cpu", "cuda"]), ("cuda", ["cuda"])])
def test_a_fault_that_ends_its_process_has_crashed_on_every_device_it_was_asked_of(asked, devices, monkeypatch):
    monkeypatch.setattr(command.environment, "probe", lambda: SimpleNamespace(devices=("cpu", "cuda")))
    journal = command.Journal(Path("teeth.jsonl"), {"asked": {"device": asked, "dtype": ""}})

    row = command._crashed(FAULTS[SEEN], "its process ended with -9", journal)
    of_a_mutant = command._crashed(next(iter(EQUIVALENT.values())), "its process ended with -9", journal)

    assert {device: end["outcome"] for device, end in row["devices"].items()} == dict.fromkeys(devices, "crashed")
    assert list(of_a_mutant["devices"]) == [asked or "cpu"]


@pytest.fixture
def library(monkeypatch):
    """A library of the faults that a test names, beside one that is real."""

    def made(**injections):
        faults = {
            name: Fault(name, "It is made up.", "POS-2", checks, "our own", "never", inject)
            for name, (inject, checks) in injections.items()
        }
        monkeypatch.setattr(command, "FAULTS", {SEEN: FAULTS[SEEN], **faults})
        monkeypatch.setattr(command, "EQUIVALENT", {})

    return made


@pytest.fixture
def ended(tmp_path):
    """The command's exit code, and what it says each fault came to."""

    def run(*arguments):
        code = command.main([f"--out={tmp_path}", *arguments])
        return code, {row["fault"]: row["devices"]["cpu"] for row in teeth.read(tmp_path / "teeth.jsonl")}

    return run


def test_each_fault_comes_to_what_it_is(library, ended, tmp_path):
    library(
        unseen=(nothing, CHECKS),
        crashes=(raising, CHECKS),
        lacks=(lacking, CHECKS),
        unasked=(nothing, (CHECKS[0], "no-such-check")),
    )

    code, ends = ended("--workers=0", "--device=cpu")

    told = {name: end["outcome"] for name, end in ends.items()}
    assert told == {
        SEEN: "detected",
        "unseen": "passed",
        "crashes": "crashed",
        "lacks": "not applicable here",
        "unasked": "not applicable here",
    }
    assert code == 1
    assert ends[SEEN]["rejected"] == ["POS-2"]
    assert "no such function here" in ends["lacks"]["why"]
    report = (tmp_path / "teeth.md").read_text(encoding="utf-8")
    assert "**1 of 3 faults detected on cpu, 2 not applicable here**" in report


def test_two_processes_come_to_what_one_comes_to_and_outlive_a_fault_that_kills_them(library, ended, tmp_path):
    library(kills=(killing, ("claims/test_memory.py", "request")), unseen=(nothing, CHECKS))

    code, ends = ended("--workers=2")

    assert code == 1
    assert {name: (end["outcome"], end["why"]) for name, end in ends.items()} == {
        SEEN: ("detected", ""),
        "unseen": ("passed", "2 checks, none failed"),
        "kills": ("crashed", "its process ended with -9"),
    }


def test_processes_leave_no_folder_behind(library, ended, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    library(unseen=(littering, ("quantization/test_engagement.py", "bfloat16-bloom")))
    made = folders.temporary()

    _, ends = ended("--workers=2")

    assert ends["unseen"]["why"] == "1 checks, none failed"
    assert [*temporary.iterdir()] == [made]


def test_what_was_asked_before_a_kill_is_not_asked_again(library, ended, tmp_path):
    library(later=(killing, CHECKS))
    killed = multiprocessing.get_context("fork").Process(target=ended, args=("--workers=0",))
    killed.start()
    killed.join()
    before = (tmp_path / "teeth.jsonl").read_text(encoding="utf-8")
    (tmp_path / "teeth.jsonl").write_text(before + before[:40], encoding="utf-8")  # and a line was cut
    library(later=(FAULTS[SEEN].inject, CHECKS))

    code, ends = ended("--workers=0")

    assert killed.exitcode == -signal.SIGKILL
    assert [json.loads(line)["fault"] for line in before.splitlines()] == [SEEN]
    assert list(ends) == [SEEN, "later"]
    assert code == 0
    assert (tmp_path / "teeth.jsonl").read_text(encoding="utf-8").count(f'"fault": "{SEEN}"') == 1


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_all_of_it_and_nothing_twice(count):
    every = command.groups(FAULTS.values())
    parts = [command.shard(every, f"{index}/{count}") for index in range(1, count + 1)]

    assert sorted(name for part in parts for group in part for name in group) == sorted(FAULTS)
    assert max(map(len, parts)) > 0


ROW = {
    "fault": "f",
    "promise": "A-1",
    "statement": "It is.",
    "area": "a",
    "when": "2026-11-25 10:00:00 +0000",
    "programs": "p",
    "stack": teeth.stack({"cpu": "here"}),
}


def end(outcome, **dtypes):
    return {"outcome": outcome, "why": "why", "rejected": [], "dtypes": dtypes, "alarms": []}


def test_a_rate_leaves_out_what_could_not_act():
    rows = [
        ROW | {"devices": {"cpu": end("detected", float32=True), "cuda": end("not applicable here")}},
        ROW | {"devices": {"cpu": end("passed", float32=False), "cuda": end("crashed")}},
        ROW | {"devices": {"cpu": end("equivalent")}},
    ]
    found = {row[:3]: row[3:5] for row in teeth.rates(rows)}

    assert found["a", "cpu", "any"] == ("1 of 2", "50.0%")
    assert found["a", "cpu", "float32"] == ("1 of 2", "50.0%")
    assert found["all", "cuda", "any"] == ("0 of 1", "0.0%")
    assert teeth.wilson(293, 293)[0] == pytest.approx(293 / (293 + 1.96**2))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "1 of 1 faults detected on cpu (2026-11-25, this suite, this stack)"),
        ({"programs": "others"}, "green was never seen red on this stack"),
        ({"stack": teeth.stack({"cpu": "there"})}, "green was never seen red on this stack"),
    ],
)
def test_a_report_says_whether_its_green_was_ever_red(tmp_path, change, told):
    row = ROW | {"devices": {"cpu": end("detected")}} | change
    (tmp_path / "teeth.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    said = teeth.seen({"cpu": "here"}, "p", [tmp_path])
    run = {"verdict": {"sentence": "conformant: 1 passed"}, "teeth": said}

    assert said.startswith(told)
    assert said in render.markdown([Record("a::b", "A-1", "it MUST", "a", "passed")], run, {})


def test_what_is_held_to_seconds_is_asked_when_nothing_else_is(library, tmp_path, monkeypatch, capsys):
    library(slow=(nothing, (command.TIMED, "speed")))
    asked = []
    monkeypatch.setattr(command, "conduct", lambda part, journal, workers, threads: asked.append((part, workers)))

    code = command.main([f"--out={tmp_path}", "--workers=4"])

    assert asked == [([[SEEN]], 4), ([["slow"]], 1)]
    assert (code, "no fault was asked" in capsys.readouterr().out) == (5, True)


def test_a_part_that_holds_no_fault_asks_none(tmp_path, capsys):
    assert command.main([f"--out={tmp_path}", SEEN, "--shard=2/2"]) == 5
    assert "no fault was asked: part 2/2 of 1 holds none" in capsys.readouterr().out
