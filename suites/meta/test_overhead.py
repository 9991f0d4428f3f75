"""What a run spends on the harness is told, and charged to who spent it."""

import re
import subprocess
import sys

from suites.meta import overhead
from suites.meta.conftest import ROOT

ASK = ["suites/attention/test_accuracy.py", "-k", "mha-33-full-sdpa- and float32-cpu"]


def test_a_run_says_what_the_harness_took_of_it(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    command = [sys.executable, "-m", "suites.meta.overhead", "--", "-n", "1", *ASK, f"--report={tmp_path / 'run'}"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    share, seconds = re.search(r"the harness: ([\d.]+)% of (\d+) s", done.stdout).groups()
    assert 0 < float(share) < 100
    assert int(seconds) > 0


def test_what_is_run_in_a_file_of_ours_is_the_harness_unless_it_computes():
    assert overhead.where(sys._getframe()) == ("suites/meta/test_overhead.py", False)
    assert overhead.where(_frame_of("fixtures/oracles/attention.py")) == ("fixtures/oracles/attention.py", True)
    assert overhead.where(_frame_of("fixtures/judgement.py")) == ("fixtures/judgement.py", False)


def test_a_library_that_computes_is_work_below_our_code_alone():
    below = _frame_of("fixtures/judgement.py", "lib/site-packages/transformers/modeling.py")
    beside = _frame_of("fixtures/judgement.py", "lib/site-packages/tabulate.py")

    assert overhead.where(below) == ("fixtures/judgement.py", True)
    assert overhead.where(beside) == ("fixtures/judgement.py", False)


def _frame_of(*files):
    """The frame of the last of some files, each of which calls the next."""
    call = sys._getframe
    for file in reversed(files):
        there: dict = {"call": call}
        exec(compile("def run():\n    return call()", ROOT / file, "exec"), there)
        call = there["run"]
    return call()
