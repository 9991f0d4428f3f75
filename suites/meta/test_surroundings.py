"""Disks, permissions, locales, time zones and paths as they come, and two runs at once in one folder."""

import datetime
import errno
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from fixtures import served
from fixtures.bad_input import BadInput
from reports import pack, render, run, verify
from reports.record import read
from reports.run import Run
from suites import workers
from suites.meta.conftest import FAILS, HEAD, PASSES, ROOT
from suites.meta.test_report import RECORD
from suites.meta.test_stopped import PROGRAM

# Not even root makes a folder in these: one is a file, the other the kernel's.
FORBIDDEN = ["/dev/null/run", "/proc/run"]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(verdict_of, folder):
    found = verdict_of([PASSES], "", f"--report={folder}")

    assert found.code == 4
    assert "the report cannot be written: [Errno" in found.printed
    assert folder.removesuffix("/run") in found.printed


def test_a_report_that_finds_no_room_leaves_every_record(verdict_of, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(render, "write", full)
        found = verdict_of([PASSES, FAILS])
    (folder,) = tmp_path.glob("run-*")

    assert found.code == 1
    assert "the report cannot be written: [Errno 28] No space left on device" in found.printed
    assert [r.promise for r in read(folder / "records.jsonl")] == ["TEST-1", "TEST-2"]
    assert render.main([str(folder)]) == 0
    assert "non-conformant: 1 passed, 1 failed" in (folder / "report.md").read_text(encoding="utf-8")


def test_a_path_of_any_option_may_begin_at_home(pytestconfig, verdict_of, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ours = pytestconfig._parser.getgroup("spiritlevel").options
    paths = [option.attrs()["type"]("~/a") for option in ours if {*option.names()} & workers.PATHS - {"--model"}]

    found = verdict_of([PASSES], "", "--report=~/gate")

    assert paths == [tmp_path / "a"] * 7
    assert (found.code, len(read(tmp_path / "gate" / "records.jsonl"))) == (0, 1), found.printed


@pytest.mark.parametrize("home", FORBIDDEN)
def test_a_cache_that_cannot_be_written_is_refused(monkeypatch, home):
    release = served.locate("")
    monkeypatch.setenv("XDG_CACHE_HOME", home)

    with pytest.raises(BadInput, match=r"its conversion cannot be kept: \[Errno .*; set XDG_CACHE_HOME"):
        served.checkpoint(release)


def test_without_room_for_temporary_files_nothing_is_begun(verdict_of, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp")

    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "mkdtemp", full)
        found = verdict_of([PASSES])

    assert found.code == 4
    assert "ERROR: [Errno 28] No space left on device: '/tmp'" in found.printed


BUILDS = '''
    def test_builds(judge, bench):
        """TEST-1: one MUST be one."""
        bench.registry.subjects["models"]["llama-gqa"].checkpoint()
        judge.exactly("one", 1, 1)
'''


@pytest.mark.parametrize(("deployment", "code"), [("", 0), ("[deployment]\nshape = 'nowhere.json'", 4)])
def test_a_run_leaves_no_models_to_those_that_follow_in_its_process(
    verdict_of, tmp_path, monkeypatch, deployment, code
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    found = verdict_of([BUILDS], deployment)

    assert found.code == code, found.printed
    assert not [*tmp_path.glob("spiritlevel-*")]


@pytest.mark.parametrize("name", ["Bericht für Änne, 模型 №1", os.fsdecode(b"caf\xe9 100%")], ids=["unicode", "bytes"])
def test_a_path_is_any_path(verdict_of, tmp_path, name):
    folder = tmp_path / name / "a run"
    found = verdict_of([PASSES, FAILS], "", f"--report={folder}")

    assert found.code == 1, found.printed
    assert render.main([str(folder)]) == 0
    assert verify.main([str(folder)]) == pack.main([str(folder)]) == 0
    assert Path(f"{folder}.zip").is_file()


def test_a_run_in_turkish_at_the_date_line_writes_what_another_does(tmp_path):
    """Where İ is the capital of i, the terminal knows no ÷, and the date is tomorrow's."""
    checks, deployment = tmp_path / "test_checks.py", tmp_path / "deployment.toml"
    checks.write_text(textwrap.dedent(HEAD) + "".join(map(textwrap.dedent, (PASSES, FAILS))), encoding="utf-8")
    today = datetime.datetime.now(datetime.timezone(datetime.timedelta(hours=14))).date()
    deployment.write_text(
        f'[[waiver]]\npromise = "TEST-2"\nreason = "÷"\nowner = "İ"\nlink = "x"\nexpires = {today}', encoding="utf-8"
    )
    there = {"LC_ALL": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati", "PYTHONIOENCODING": "ascii"}
    options = ["--rootdir", ROOT, "-c", ROOT / "pyproject.toml", "-p", "conftest", "-p", "suites.conftest"]
    command = [sys.executable, "-m", "pytest", *options, f"--deployment={deployment}", f"--report={tmp_path / 'run'}"]

    done = subprocess.run([*command, checks], cwd=ROOT, env={**os.environ, **there}, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "conformant: 1 passed, 1 waived (" in done.stdout
    facts = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert facts["started"].endswith("+1400")
    assert verify.problems(tmp_path / "run") == []


def test_the_day_on_which_a_waiver_ends_is_the_local_one(verdict_of, monkeypatch):
    """At any moment it is another day on one side of the date line than on the other, 26 hours apart."""
    waiver = '[[waiver]]\npromise = "TEST-2"\nreason = "known"\nowner = "me"\nlink = "x"\nexpires = {}'
    west = datetime.datetime.now(datetime.timezone(datetime.timedelta(hours=-12))).date()
    codes = []
    try:
        for zone in ("Etc/GMT+12", "Pacific/Kiritimati"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            codes.append(verdict_of([FAILS], waiver.format(west)).code)
    finally:
        monkeypatch.undo()
        time.tzset()

    assert codes == [0, 4]


def test_two_runs_at_once_in_one_folder_are_one_run_and_a_refusal(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, folder]
    where = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **where) for _ in range(3)]
    told = [one.communicate()[1] for one in running]

    assert sum(one.returncode == 0 for one in running) >= 1, told
    assert all("another run" in said or "already holds a run" in said for said in told if said), told
    assert [r.check for r in read(folder / "records.jsonl")] == [f"a.py::test[{i}]" for i in range(1500)]


def test_a_folder_is_one_runs_until_it_is_closed(tmp_path):
    first = Run(tmp_path, {}, {})
    first.open()
    with pytest.raises(FileExistsError, match=r"another run is writing to .*: wait, or give this one its own folder"):
        Run(tmp_path, {}, {}, former=[]).open()

    first.add(RECORD.line())
    del first
    with pytest.raises(ValueError, match="another run has gone on there meanwhile"):
        Run(tmp_path, {}, {}, former=[]).open()
    assert run.verified(tmp_path) == [RECORD]


BEGINS = """
import sys
import conftest
from fixtures import attention, flex, quantizers
for register in (attention, flex):
    register.pytest_spiritlevel_attention(lambda *names, **declared: None)
quantizers.pytest_spiritlevel_quantizer(lambda *names, **declared: None)
print(*{"bitsandbytes", "scipy.stats", "torch.nn.attention.bias"} & set(sys.modules))
"""


def test_what_takes_seconds_to_import_is_imported_by_who_needs_it():
    """Every worker begins with these imports, one after another process has: 20 s of an H200's main job were theirs."""
    done = subprocess.run([sys.executable, "-c", BEGINS], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""
