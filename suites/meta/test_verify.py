"""A run that was tampered with is not what it says it is, whether or not its checksums were made to fit."""

import dataclasses
import json
import zipfile

import pytest

from fixtures.judgement import Inconclusive, Judge, Rejected
from fixtures.statistics import Interval
from reports import pack, render, verify
from reports.files import checksums, write_json
from reports.record import Record
from reports.run import Run
from reports.verdict import judge

WAIVER = {"reason": "known", "owner": "platform", "link": "https://example.org/1", "expires": "2999-01-01"}
ENVIRONMENT = {"python": "3.11", "versions": {"torch": "2.13.0"}}


def judged(name, ask, **more):
    """A record of what a real judge said when it was asked."""
    judge = Judge("QUANT-1")
    ask(judge)
    try:
        judge.conclude()
        outcome = "passed"
    except Rejected:
        outcome = "waived" if "waiver" in more else "failed"
    except Inconclusive:
        outcome = "inconclusive"
    what = {"outcome": outcome, "judgements": tuple(judge.as_dicts()), "environment": ENVIRONMENT, **more}
    return Record(f"suites/a/test_a.py::test_{name}", "QUANT-1", "it MUST hold", "a", **what)


def margin(low, high):
    return lambda j: j.interval("KL", Interval((low + high) / 2, low, high, 0.1, 48), ideal=0, high=1.0)


# One of each rule and outcome.
RECORDS = [
    judged("equal", lambda j: j.exactly("bytes", 4, 4, unit="bytes")),
    judged("unequal", lambda j: j.exactly("bytes", 4, 5, unit="bytes"), waiver=WAIVER),
    judged("within", lambda j: j.within("KL ÷ textbook nf4", 1.01)),
    judged("without", lambda j: j.within("KL ÷ textbook nf4", 9.0), waiver=WAIVER),
    judged("nan", lambda j: j.within("KL ÷ textbook nf4", float("nan")), waiver=WAIVER),
    judged("sigmas", lambda j: j.sigmas("mean", 1.0, 1.1, 0.1, 4)),
    judged("ran", lambda j: j.ran("kernels", ["*flash*"], ["void flash_fwd<64, true>", "gemm"])),
    judged("did-not-run", lambda j: j.ran("kernels", ["*flash*"], ["gemm"]), waiver=WAIVER),
    judged("inside", margin(0.1, 0.9)),
    judged("astride", margin(0.9, 1.1)),
    judged("beyond", margin(1.1, 1.2), waiver=WAIVER),
    judged("unverified", lambda j: None, outcome="unverified", message="no tokenizer"),
]


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has a record of each rule and outcome."""
    deployment = "".join(f"{k} = '{v}'\n" for k, v in WAIVER.items())
    made = Run(tmp_path / "run", ENVIRONMENT, {"seed": 0}, {"deployment.toml": f"[[waiver]]\n{deployment}"})
    made.open()
    for record in RECORDS:
        made.add(record.line())
    terms = {"owed": ["QUANT-1"], "scope": "all areas"}
    made.close(judge(made.records, **terms), terms)
    return made.folder


def test_a_run_is_what_it_says(run, capsys):
    assert verify.main([str(run)]) == 0
    assert "11 judgements of 12 records and the verdict follow from what was measured" in capsys.readouterr().out


def test_a_run_that_is_rendered_again_verifies(run):
    assert render.main([str(run)]) == 0
    assert verify.problems(run) == []


def lines(run, change):
    """Change the lines of records.jsonl, each as what it says."""
    file = run / "records.jsonl"
    found = change([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])
    file.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in found), encoding="utf-8")


def outcome(run):
    lines(run, lambda found: [r | {"outcome": "passed"} if r["outcome"] == "inconclusive" else r for r in found])


def judgement(run):
    def change(found):
        found[3]["judgements"][0]["outcome"] = found[3]["outcome"] = "passed"
        return found

    lines(run, change)


def measured(run):
    def change(found):
        found[2]["judgements"][0]["measured"] = 7.0
        return found

    lines(run, change)


def removed(run):
    lines(run, lambda found: found[:-1])


def added_twice(run):
    lines(run, lambda found: [*found, found[0]])


def another_seed(run):
    lines(run, lambda found: [found[0] | {"seed": 1}, *found[1:]])


def nobodys_waiver(run):
    lines(run, lambda found: [r | {"waiver": WAIVER | {"reason": "because"}} if r["waiver"] else r for r in found])


def environment(run):
    write_json(run / "environment.json", ENVIRONMENT | {"versions": {"torch": "2.14.0"}})


def verdict(run):
    said = json.loads((run / "run.json").read_text(encoding="utf-8"))
    said["verdict"] |= {"name": "conformant", "sentence": "conformant: 12 passed (all areas)", "exit_code": 0}
    write_json(run / "run.json", said)


def report(run):
    (run / "report.html").write_text("<p>conformant</p>", encoding="utf-8")


def deployment(run):
    (run / "deployment.toml").unlink()


@pytest.mark.parametrize(
    ("tamper", "complaint", "resealed"),
    [
        (outcome, "test_astride: says passed, and from its judgements follows inconclusive", True),
        (judgement, "KL ÷ textbook nf4: says passed, and from measured 9.0 and allowed", True),
        (measured, "test_within: KL ÷ textbook nf4: says passed, and from measured 7.0", True),
        (removed, "and from its records follows", True),
        (added_twice, "test_equal: has 2 records", True),
        (another_seed, "was measured with seed 1, and the run says 0", True),
        (nobodys_waiver, "no waiver of the deployment file excuses it", True),
        (environment, "was measured in another environment", True),
        (verdict, "says 'conformant: 12 passed (all areas)', and from its records follows 'partial", True),
        (deployment, "no waiver of the deployment file excuses it", True),
        (deployment, "deployment.toml: is gone", False),
        (report, "report.html: is not the file that the run wrote", False),
        (measured, "records.jsonl: is not the file that the run wrote", False),
        (environment, "environment.json: is not the file that the run wrote", False),
    ],
)
def test_a_run_that_was_tampered_with_is_refused(run, tamper, complaint, resealed, capsys):
    tamper(run)
    if resealed:
        said = json.loads((run / "run.json").read_text(encoding="utf-8"))
        write_json(run / "run.json", said | {"sha256": checksums(run)})

    assert verify.main([str(run)]) == 1
    assert complaint in capsys.readouterr().out
    assert pack.main([str(run)]) == 1


@pytest.mark.parametrize("lost", ["run.json", "records.jsonl", "environment.json"])
def test_a_folder_that_is_no_run_says_what_it_lacks(run, lost, capsys):
    (run / lost).unlink()

    assert verify.main([str(run)]) == 1
    assert lost in capsys.readouterr().out


def test_a_run_without_checksums_is_not_taken_for_one_that_has_them(run):
    said = json.loads((run / "run.json").read_text(encoding="utf-8"))
    del said["sha256"]
    write_json(run / "run.json", said)

    assert verify.problems(run) == ["run.json holds no checksums: nothing says that its files belong together"]


def test_a_record_of_no_rule_cannot_be_judged_again():
    old = dataclasses.replace(RECORDS[0], judgements=({"quantity": "bytes", "measured": 1, "allowed": 1},))

    assert verify.judgement(old.judgements[0]) == "unknown, for want of 'rule'"


def test_an_archive_holds_the_run_and_nothing_else_and_verifies(run, tmp_path):
    (run / "notes.txt").write_text("mine", encoding="utf-8")

    assert pack.main([str(run)]) == 0
    with zipfile.ZipFile(tmp_path / "run.zip") as packed:
        packed.extractall(tmp_path / "unpacked")

    unpacked = tmp_path / "unpacked" / "run"
    assert not (unpacked / "notes.txt").exists()
    assert verify.main([str(unpacked)]) == 0
