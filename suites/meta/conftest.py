"""What the suite's own tests ask for: a conformance run inside a test, and warnings that are errors."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from reports.record import Record, read

ROOT = Path(__file__).parent.parent.parent

# Warnings are errors in here, but not those that the libraries under test raise at us.
IGNORED = [
    "ignore:.*torch.jit.script:DeprecationWarning",  # bitsandbytes, optimum-quanto
    "ignore::FutureWarning:transformers",  # 4.57 about 5
    "ignore:Warning. Profiler clears events:UserWarning",  # torch 2.11, of every profile after the first
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            # Of two rules the later one holds: these come before a test's own.
            item.add_marker(pytest.mark.filterwarnings("error", *IGNORED), append=False)


# What the checks of a test start with, and those that several tests are about.
HEAD = """
    import torch
    import pytest
    from fixtures.judgement import Judge, Unverified
"""
PASSES = '''
    def test_holds(judge):
        """TEST-1: one MUST be one."""
        judge.exactly("one", 1, 1)
'''
FAILS = '''
    def test_breaks(judge):
        """TEST-2: one MUST be two."""
        judge.exactly("one", 1, 2)
'''
CRASHES = '''
    def test_crashes(judge):
        """TEST-2: one MUST be two."""
        raise RuntimeError("out of luck")
'''


class Outcome(NamedTuple):
    """A conformance run: its exit code, its records, and what it printed."""

    code: int
    records: list[Record]
    printed: str

    @property
    def verdict(self) -> str:
        """The line that says what it came to."""
        words = ("conformant:", "non-conformant:", "partial:", "unverified:", "bad input:")
        return next((line for line in self.printed.splitlines() if line.startswith(words)), "")


@pytest.fixture
def conformance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Run the suite, or a part of it, in this process: `conformance("suites/attention", "-k", "float32")`."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)  # the job's own is not for runs inside of tests
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # a run in here is no worker's, and may take times

    def run(*arguments: str | Path, plugins: list[object] | None = None) -> Outcome:
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        capsys.readouterr()
        fixed = [
            "--rootdir",
            str(ROOT),
            "-c",
            str(ROOT / "pyproject.toml"),
            "--report",
            str(folder),
            "-p",
            "no:terminalprogress",
        ]
        code = pytest.main([*fixed, *map(str, arguments)], plugins=plugins)
        found = folder / "records.jsonl"
        captured = capsys.readouterr()
        return Outcome(int(code), read(found) if found.exists() else [], captured.out + captured.err)

    return run


@pytest.fixture
def verdict_of(tmp_path: Path, conformance: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Run a file of checks, with a deployment file if one is given."""

    def run(checks: list[str], deployment: str = "", *options: str | Path) -> Outcome:
        file = tmp_path / "checks" / "test_checks.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(HEAD) + "\n".join(map(textwrap.dedent, checks)), encoding="utf-8")
        toml = tmp_path / "deployment.toml"
        toml.write_text(textwrap.dedent(deployment), encoding="utf-8")
        return conformance(file, "-p", "conftest", "-p", "suites.conftest", f"--deployment={toml}", *options)

    return run
