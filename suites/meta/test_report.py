"""Records survive what happens to runs, and a report shows them without breaking."""

import dataclasses
import itertools
import json
import shlex
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from fixtures.models import Workshop
from reports import curves, render, summary, wording
from reports.record import Record, append, read
from reports.run import Run
from reports.verdict import judge
from suites.meta.conftest import ROOT

RECORD = Record(
    "suites/a/test_a.py::test_a[x|y-cpu]",
    "A-1",
    "it MUST hold",
    "a",
    "passed",
    judgements=({"quantity": "worst | row", "measured": 1.0, "allowed": 2.0, "headroom": 0.5},),
    environment={"python": "3.11"},
)


def test_a_record_reads_back_as_it_was_written(tmp_path):
    infinite = dataclasses.replace(RECORD, judgements=({"headroom": float("inf")},))
    for record in (RECORD, infinite):
        append(tmp_path / "records.jsonl", record.line())

    first, second = read(tmp_path / "records.jsonl")

    assert first == RECORD
    assert second.headroom == float("inf")


def test_the_cut_line_of_a_killed_run_is_left_out(tmp_path):
    file = tmp_path / "records.jsonl"
    append(file, RECORD.line())
    with file.open("a", encoding="utf-8") as stream:
        stream.write(RECORD.line()[:40])

    assert read(file) == [RECORD]


@pytest.mark.parametrize("line", ["not json", '{"schema": 99}', '{"schema": 1, "colour": "red"}', "[]"])
def test_what_is_no_record_is_refused_with_its_line(tmp_path, line):
    file = tmp_path / "records.jsonl"
    append(file, RECORD.line())
    with file.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")

    with pytest.raises(ValueError, match="line 2"):
        read(file)


def test_a_waiver_is_told_once_with_all_that_it_excused():
    waiver, checks = {"reason": "known"}, [f"suites/a/test_a.py::test_a[{n}]" for n in range(300)]
    waived = [
        dataclasses.replace(RECORD, check=check, outcome="waived", message=f"off by {n}", waiver=waiver)
        for n, check in enumerate(checks)
    ]
    run = {"verdict": {"name": "conformant", "sentence": "conformant: 300 waived (all)", "exit_code": 0}}

    written = render.markdown(waived, run, {})

    assert written.count("### waived, 300 ×: known") == 1
    assert "off by 0" in written
    assert "off by 1\n" not in written
    assert all(check in written for check in checks)


def test_an_outcome_that_is_none_is_refused():
    with pytest.raises(ValueError, match="'green' is no outcome"):
        dataclasses.replace(RECORD, outcome="green")


def test_a_run_is_never_overwritten(tmp_path):
    Run(tmp_path / "run", {}, {}).open()

    with pytest.raises(FileExistsError, match="already holds a run"):
        Run(tmp_path / "run", {}, {}).open()


def test_a_report_is_rendered_from_its_folder_alone_and_without_torch(tmp_path):
    failed = dataclasses.replace(RECORD, check="suites/a/test_a.py::test_b", outcome="failed", message="it did ``` not")
    run = Run(tmp_path / "run", {"python": "3.11", "versions": {"torch": "2"}}, {"deployment": "a | <b>", "seed": 0})
    run.open()
    for record in (RECORD, failed):
        run.add(record.line())
    terms = {"owed": ["A-1"], "scope": "all"}
    run.close(judge(run.records, **terms), terms)
    written = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    program = (
        "import sys; from reports import render; render.main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], cwd=ROOT, check=True)

    assert (tmp_path / "run" / "report.md").read_text(encoding="utf-8") == written
    assert "**non-conformant: 1 passed, 1 failed (all)**" in written
    assert "a \\| &lt;b>" in written
    assert "a/test_a.py::test_a[x\\|y-cpu]" in written
    assert "` ` ` not" in written


NOTHING_GIVEN = {
    "model": "",
    "deployment": None,
    "shape": None,
    "checkpoints": None,
    "policy": None,
    "trust_remote_code": False,
    "allow_pickle": False,
    "benchmark_enable": False,
    "tier": "standard",
    "plugins": ["no:cacheprovider"],
}


@pytest.mark.parametrize(
    ("given", "more"),
    [
        ({}, ""),
        ({"model": "/home/me/b c"}, " '--model=~/b c'"),
        ({"checkpoints": "/home/me/ours", "policy": "p.toml"}, " '--checkpoints=~/ours' --policy=p.toml"),
        ({"shape": "/home/me/config.json", "benchmark_enable": True}, " '--shape=~/config.json' --benchmark-enable"),
        ({"tier": "full", "plugins": ["acme"], "allow_pickle": True}, " --allow-pickle --tier=full -p acme"),
    ],
)
def test_a_rerun_line_holds_what_was_given_and_nothing_else(monkeypatch, given, more):
    monkeypatch.setenv("HOME", "/home/me")

    line = wording.rerun("a.py::test[x-cpu]", 7, SimpleNamespace(**{**NOTHING_GIVEN, **given}))

    assert line == f"pytest 'a.py::test[x-cpu]' --seed 7{more}"


def test_a_rerun_line_asks_for_the_same_model_and_deployment(conformance, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = Workshop(0, tmp_path).checkpoint("llama-gqa")
    (tmp_path / "deployment.toml").write_text("[deployment]\nname = 'ours'\n", encoding="utf-8")
    given = f"--model={model}", f"--deployment={tmp_path / 'deployment.toml'}"
    found = conformance("suites/attention/test_accuracy.py", "-k", "mha-33-full-eager-float32-cpu", *given)

    (record,) = found.records
    assert record.rerun.endswith(f" --seed 0 '--deployment=~/deployment.toml' '--model=~/{model.name}'")

    again = conformance(*shlex.split(record.rerun)[1:])

    assert [(r.check, r.outcome, r.rerun) for r in again.records] == [(record.check, "passed", record.rerun)]


def test_nothing_that_a_run_says_is_markdown():
    run = {"verdict": {"sentence": "conformant: 1 passed"}, "deployment": "![seen](https://example.org/) <b>"}

    assert "| ![seen]\\(https://example.org/) &lt;b> " in render.markdown([RECORD], run, {})


def test_a_message_that_is_no_text_is_shown_all_the_same(tmp_path):
    odd = dataclasses.replace(RECORD, outcome="failed", message="/models/\udcff")

    names = render.write(tmp_path, [odd], {"verdict": {"sentence": "non-conformant: 1 failed"}}, {})

    assert {"report.html", "report.md", "report.xml"} == set(names)


def test_a_job_on_github_gets_the_short_form(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    terms = {"owed": ["A-1", "A-2"], "scope": "all areas"}

    for folder, records in (("run", [RECORD]), ("empty", [])):
        run = Run(tmp_path / folder, {}, {})
        run.open()
        for record in records:
            run.add(record.line())
        run.close(judge(run.records, **terms), terms)

    told = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "**partial: 1 passed; no check of A-2 (all areas)**\n\nNot verified:\n\n- no check of A-2\n" in told
    assert "**unverified: no check ran (all areas)**" in told


def test_the_tightest_passes_come_first():
    loose = dataclasses.replace(RECORD, judgements=({"quantity": "gain", "headroom": 0.1},))

    assert [row[3] for row in summary.tightest([loose, RECORD])] == ["0.50", "0.10"]


def test_published_reports_can_still_be_read():
    for folder in (ROOT / "reports" / "published").iterdir():
        if folder.is_dir():
            run, environment = (json.loads((folder / f"{n}.json").read_text("utf-8")) for n in ("run", "environment"))
            assert render.markdown(read(folder / "records.jsonl"), run, environment)


def curve(line, points, device="cpu"):
    told = {"figure": "reference models", "line": line, "unit": "nats a byte", "trained": 128, "points": points}
    return dataclasses.replace(RECORD, device=device, evidence={"curve": told})


def test_loss_by_length_is_a_picture_and_a_table():
    records = [curve("rope", [[64, 1.0], [256, 3.9]]), curve("a<b", [[64, 1.1], [256, 1.0]])]

    blocks, pictures = curves.section(records)

    drawn = ElementTree.fromstring(pictures["reference-models.svg"])
    lines = drawn.findall("{*}polyline")
    told = {text.text for text in drawn.findall("{*}text")}
    assert len(lines) == 2
    assert {"rope", "a<b", "trained", "128"} <= told
    assert "reference-models.svg" in blocks[1]
    assert [cell.strip() for cell in blocks[2].split("\n")[2].split("|")[1:4]] == ["rope", "1.000", "3.900"]


def test_a_line_says_its_device_where_there_are_two_and_is_drawn_once_on_each():
    records = [curve("rope", [[64, 1.0]]), curve("rope", [[64, 1.0], [128, 2.0]]), curve("rope", [[64, 1.0]], "cuda")]

    found = curves.figures(records)["reference models"]

    assert {name: len(c["points"]) for name, c in found.items()} == {"rope, cpu": 2, "rope, cuda": 1}


def test_names_of_lines_do_not_cover_each_other():
    many = [curve(f"line {i}", [[64, 1.0], [256, 1.0 + i / 100]]) for i in range(12)]

    drawn = ElementTree.fromstring(curves.section(many)[1]["reference-models.svg"])

    heights = sorted(float(t.get("y")) for t in drawn.findall("{*}text") if t.text.startswith("line "))
    assert min(b - a for a, b in itertools.pairwise(heights)) >= curves.LABEL - 0.2
    assert heights[0] > 0
    assert heights[-1] < curves.HEIGHT


def test_time_by_length_needs_no_trained_length():
    told = {"figure": "a step", "line": "sdpa", "unit": "ms", "points": [[64, 0.31], [256, 0.34]]}

    blocks, pictures = curves.section([dataclasses.replace(RECORD, evidence={"curve": told})])

    assert "a step: ms by length of context" in pictures["a-step.svg"]
    assert "trained" not in pictures["a-step.svg"]
    assert "| ms" in blocks[2]


def test_what_is_not_finite_is_not_drawn():
    broken = curve("rope", [[64, 1.0], [128, float("nan")], [256, "inf"]]), curve("alibi", [[64, "nan"]])

    (found,) = curves.figures(broken).values()

    assert {line: c["points"] for line, c in found.items()} == {"rope": [(64, 1.0)]}
    assert "nan" not in curves.svg("reference models", found)
    assert curves.section(broken[1:]) == ([], {})


def test_a_report_without_curves_has_no_picture():
    assert curves.section([RECORD]) == ([], {})


def test_pictures_lie_beside_the_report(tmp_path):
    run = {"verdict": {"sentence": "conformant: 1 passed (all areas)"}}

    render.write(tmp_path, [curve("rope", [[64, 1.0], [256, 3.9]])], run, {})

    assert "](reference-models.svg)" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "reference-models.svg").read_text(encoding="utf-8").startswith("<svg")
