"""Two runs, one of them doctored, and the certificate that follows."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from fixtures import tokens
from fixtures.judgement import Judge
from reports import certificate, compare
from reports.record import Record, append
from reports.upgrade import Side
from suites.meta.conftest import PASSES, ROOT

FACTS = {
    "seed": 0,
    "model": "m, sha256 1",
    "data": {"text": "1"},
    "selection": {"tier": "standard", "paths": ["suites"]},
    "verdict": {"sentence": "conformant: 3 passed (all areas)"},
    "command": "pytest suites",
}
ENVIRONMENT = {"python": "3.11", "driver": "1", "versions": {"torch": "2.12.0"}}
TEXTS, LENGTH, VOCABULARY, NOISE = 4, 50, 16, 0.01


def judgement(measured, **more):
    told = {"quantity": "overall", "measured": measured, "unit": "×", "dtype": "float32", "outcome": "passed"}
    return {**told, "allowed": 2.0, "headroom": measured / 2, "healthy": 0.5, **more}


def exact(measured):
    return {"quantity": "kernels", "measured": measured, "allowed": "one of a, b", "outcome": "passed"}


def logits():
    return torch.randn(TEXTS * LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(0))


def said(scores, following=None, noise=NOISE):
    """What a record keeps of these logits; the text is by default what they rank first."""
    following = logits().argmax(-1) if following is None else following
    found = tokens.columns(scores.double().log_softmax(-1), following)
    return {"text": tokens.kept(found, following, [LENGTH] * TEXTS, noise)}


def check(name, measured=0.4, subject="sdpa", **more):
    given = {"outcome": "passed", "judgements": (judgement(measured),), "evidence": {"bits": "00"}, **more}
    about = {"statement": "it MUST hold", "area": "a", "subject": subject, "device": "cpu"}
    return Record(f"suites/a/test_a.py::test_{name}", "A-1", **{**about, **given})


HEALTHY = [check("one"), check("two", subject="flash"), check("model", evidence={"said": said(logits())})]


def side(records=HEALTHY, **facts):
    return Side("run", records, {**FACTS, **facts}, ENVIRONMENT)


def doctored(name, **changes):
    """The healthy run with one check changed."""
    return [dataclasses.replace(r, **changes) if r.check.endswith(name) else r for r in HEALTHY]


def nudged(by, token=7):
    """Logits in which a token's second choice has overtaken its first by so much."""
    scores = logits()
    top = scores[token].topk(2)
    scores[token, top.indices[1]] = top.values[0] + by
    return scores


def close(gap):
    """Logits in which a token's second choice is so close to its first."""
    return nudged(-gap)


def test_a_run_is_the_same_as_itself():
    found = compare.compare(side(), side())

    assert (found.sentence, found.exit_code) == ("safe: 3 bitwise equal", 0)
    assert not found.stack


@pytest.mark.parametrize(
    ("after", "verdict", "code", "kind"),
    [
        (doctored("one", evidence={"bits": "01"}), "safe", 0, "within the noise floor"),
        (doctored("one", judgements=(judgement(0.99),)), "safe", 0, "within the noise floor"),
        (doctored("one", judgements=(judgement(1.5),)), "changed", 3, "moved within the allowance"),
        (doctored("one", judgements=(judgement(0.4, quantity="gain"),)), "changed", 3, "moved within the allowance"),
        (doctored("one", judgements=(judgement(0.4), exact("b"))), "changed", 3, "moved within the allowance"),
        (doctored("one", judgements=(judgement(float("nan")),)), "changed", 3, "moved within the allowance"),
        (doctored("one", judgements=()), "changed", 3, "moved within the allowance"),
        (doctored("one", outcome="failed"), "regression", 1, "now fails"),
        (doctored("one", outcome="failed", crash=True), "regression", 1, "now fails"),
        (doctored("one", outcome="waived"), "changed", 3, "now waived"),
        (doctored("one", outcome="unverified"), "regression", 1, "no longer verified"),
        (doctored("one", outcome="inconclusive"), "regression", 1, "no longer verified"),
        (HEALTHY[1:], "regression", 1, "vanished"),
        ([*HEALTHY, check("three")], "changed", 3, "appeared"),
        ([*HEALTHY, check("three", outcome="failed")], "regression", 1, "now fails"),
        (doctored("one", statement="it MUST hold well"), "regression", 1, "vanished"),
        (doctored("one", statement="it MUST hold well"), "regression", 1, "appeared"),
    ],
)
def test_what_becomes_of_a_check(after, verdict, code, kind):
    found = compare.compare(side(), side(after))

    assert (found.verdict, found.exit_code) == (verdict, code), found.sentence
    assert found.count[kind] == 1


@pytest.mark.parametrize(
    ("before", "after", "verdict", "kind"),
    [
        ("failed", "passed", "changed", "now passes"),
        ("waived", "passed", "changed", "now passes"),
        ("unverified", "passed", "changed", "now passes"),
        ("failed", "failed", "changed", "fails in both"),
        ("failed", "waived", "changed", "now waived"),
        ("failed", "unverified", "changed", "verified in neither"),
        ("unverified", "unverified", "changed", "verified in neither"),
        ("waived", "waived", "safe", "waived in both"),
        ("waived", "failed", "regression", "now fails"),
        ("waived", "unverified", "regression", "no longer verified"),
        ("unverified", "failed", "regression", "now fails"),
    ],
)
def test_what_becomes_of_a_check_that_did_not_pass(before, after, verdict, kind):
    found = compare.compare(side(doctored("one", outcome=before)), side(doctored("one", outcome=after)))

    assert found.verdict == verdict
    assert found.count[kind] == 1


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"seed": 1}, "the seed differs: 0 before, 1 after"),
        ({"data": {"text": "2"}}, "the data differs: text 1 before, text 2 after"),
        ({"model": "m, sha256 2"}, "the model differs: m, sha256 1 before, m, sha256 2 after"),
        ({"selection": {"tier": "full", "paths": ["suites"]}}, "what was asked for differs"),
    ],
)
def test_runs_that_say_nothing_of_each_other_are_refused(facts, reason):
    found = compare.compare(side(), side(**facts))

    assert found.sentence.startswith(f"refused: {reason}")
    assert found.exit_code == 4


def test_another_model_is_compared_where_that_is_asked_for():
    found = compare.compare(side(), side(model="another"), across_models=True)

    assert found.verdict == "safe"


def test_runs_without_a_check_in_common_are_refused():
    assert compare.compare(side(HEALTHY[:1]), side(HEALTHY[1:])).sentence == "refused: no check is in both runs"


def test_what_a_run_does_not_say_is_noted():
    found = compare.compare(Side("records", HEALTHY), side())

    assert [note.split(" is ")[0] for note in found.notes] == [
        "whether the data",
        "whether the model",
        "whether what was asked for",
    ]


def test_an_estimate_within_the_interval_of_before_has_not_moved():
    given = {"quantity": "top-1", "healthy": None, "interval": [0.3, 0.5]}
    before = side(doctored("one", judgements=(judgement(0.4, **given),)))

    inside, beyond = (
        compare.compare(before, side(doctored("one", judgements=(judgement(x, **given),)))) for x in (0.45, 0.6)
    )

    assert (inside.verdict, beyond.verdict) == ("safe", "changed")


@pytest.mark.parametrize(
    ("old", "new", "verdict", "unexplained"),
    [
        (close(0.004), nudged(0.004), "safe", 0),
        (close(0.004), nudged(0.5), "regression", 1),
        (logits(), nudged(0.004), "regression", 1),
        (logits(), nudged(float("nan")), "regression", 1),
    ],
    ids=["explained", "sure since", "sure before", "nan"],
)
def test_a_flip_is_explained_by_noise_or_is_a_defect(old, new, verdict, unexplained):
    runs = [side([*HEALTHY[:2], check("model", evidence={"said": said(scores)})]) for scores in (old, new)]

    found = compare.compare(*runs)

    assert found.verdict == verdict
    assert [(f.flips, f.unexplained, f.tokens) for f in found.flips] == [(1, unexplained, TEXTS * LENGTH)]


@pytest.mark.parametrize(("lost", "verdict"), [(3, "safe"), (40, "regression")])
def test_flips_that_noise_explains_may_not_cost_tokens_of_the_text(lost, verdict):
    scores = logits()
    scores[:lost] = scores[:lost].roll(1, -1)
    runs = [check("model", evidence={"said": said(some, noise=100.0)}) for some in (logits(), scores)]

    found = compare.compare(side(runs[:1]), side(runs[1:]))

    (flips,) = found.flips
    assert (found.verdict, flips.lost, flips.won, flips.unexplained) == (verdict, lost, 0, 0)
    assert flips.right.low < flips.right.estimate < flips.right.high
    assert flips.right.estimate == pytest.approx(-lost / (TEXTS * LENGTH))


def test_another_text_is_not_compared_token_by_token():
    runs = [check("model", evidence={"said": said(logits(), torch.full((TEXTS * LENGTH,), n))}) for n in (1, 2)]

    assert compare.compare(side(runs[:1]), side(runs[1:])).flips == []


def test_a_kernel_has_another_name_but_not_by_the_checksum_of_its_graph():
    kernels = [f"graph {'a' * 40} of x", f"graph {'b' * 40} of x", f"graph {'b' * 40} of y"]
    first, again, other = (side(doctored("one", judgements=(exact(name),))) for name in kernels)

    assert [compare.compare(first, run).verdict for run in (again, other)] == ["safe", "changed"]


def test_many_checks_that_move_together_drift():
    before, after, apart = (
        [check(f"n{n}", 0.4 * grown ** (1 if n % 2 else sign)) for n in range(24)]
        for grown, sign in ((1, 1), (1.5, 1), (1.5, -1))
    )

    together, chance = compare.compare(side(before), side(after)), compare.compare(side(before), side(apart))

    assert (together.verdict, [(d.more, d.moved, round(d.ratio, 3)) for d in together.drifts]) == (
        "changed",
        [(24, 24, 1.5)],
    )
    assert (chance.verdict, chance.drifts) == ("safe", [])


def test_a_backend_that_is_gone_is_named_and_so_is_what_changed_in_the_stack():
    after = Side(
        "after", [r for r in HEALTHY if r.subject != "flash"], FACTS, {**ENVIRONMENT, "versions": {"torch": "2.13.0"}}
    )

    found = compare.compare(side(), after)
    told = certificate.markdown(found)

    assert found.stack == [("torch", "2.12.0", "2.13.0")]
    assert "flash, in 1 checks" in told
    assert "| torch | 2.12.0   | 2.13.0  |" in told


def test_every_rendering_says_the_same_and_breaks_of_nothing(tmp_path):
    after = doctored("one", outcome="failed", message="<script>alert(1)</script> | `x` ```")

    certificate.write(tmp_path, compare.compare(side(), side(after)))

    sentence = "regression: 1 now fails; 2 bitwise equal"
    data = json.loads((tmp_path / "certificate.json").read_text(encoding="utf-8"))
    page = (tmp_path / "certificate.html").read_text(encoding="utf-8")
    assert (data["verdict"], data["exit_code"], data["sentence"]) == ("regression", 1, sentence)
    assert f"**{sentence}**" in (tmp_path / "certificate.md").read_text(encoding="utf-8")
    assert sentence in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def write(folder, records=HEALTHY, **facts):
    folder.mkdir()
    for r in records:
        append(folder / "records.jsonl", r.line())
    for name, data in {"run": {**FACTS, **facts}, "environment": ENVIRONMENT}.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def test_the_command_needs_no_torch_and_its_exit_code_is_the_verdict(tmp_path):
    runs = write(tmp_path / "before"), write(tmp_path / "after", doctored("one", judgements=(judgement(1.5),)))
    program = (
        "import sys; from reports import compare; code = compare.main(sys.argv[1:]);"
        "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(code)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, runs), "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines()[-1] == "changed: 1 moved within the allowance; 2 bitwise equal"
    assert {f.name for f in (tmp_path / "out").iterdir()} == {f"certificate.{s}" for s in ("md", "html", "json")}


@pytest.mark.parametrize("broken", ["nothing", "empty", "another schema", "cut facts"])
def test_what_is_no_run_is_refused(tmp_path, broken, capsys):
    folder = tmp_path / "after"
    if broken != "nothing":
        write(folder)
    if broken == "empty":
        (folder / "records.jsonl").write_text("", encoding="utf-8")
    if broken == "another schema":
        (folder / "records.jsonl").write_text('{"schema": 99}\n', encoding="utf-8")
    if broken == "cut facts":
        (folder / "run.json").write_text('{"seed": ', encoding="utf-8")

    code = compare.main([str(write(tmp_path / "before")), str(folder)])

    assert code == 4
    assert "after is no run: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seed", "code", "told"),
    [(0, 3, "changed: 1 now passes"), (1, 4, "--baseline: the seed differs: 1 before, 0 after")],
)
def test_a_run_is_certified_against_its_baseline(verdict_of, tmp_path, seed, code, told):
    before = Record("::test_holds", "TEST-1", "one MUST be one.", "checks", "failed", seed=seed)
    append(tmp_path / "records.jsonl", before.line())

    found = verdict_of([PASSES], "", f"--baseline={tmp_path / 'records.jsonl'}")

    assert (found.code, len(found.records)) == (code, 1 - seed)
    assert told in found.printed


# Of what is measured in bytes, in texts and by threads, which is another each time where nobody took care.
ASKED = ["--tier=smoke", "suites/memory", "suites/kv_cache/test_reuse.py", "suites/weights"]


def test_one_stack_is_safe_to_go_on_with(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    before, after = tmp_path / "before", tmp_path / "after"

    for options in ([f"--report={before}"], [f"--report={after}", f"--baseline={before}"]):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *ASKED, *options], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout

    assert "\nsafe: " in done.stdout


def test_what_was_said_is_kept_of_a_trained_model_that_answered_every_token():
    ids, scores = torch.arange(TEXTS * 5).view(TEXTS, 5) % VOCABULARY, logits()[: TEXTS * 5].view(TEXTS, 5, VOCABULARY)
    trained, small = SimpleNamespace(real=True), SimpleNamespace(real=False)

    found = tokens.said(trained, scores, ids)["said"]["text"]

    assert (found["documents"], found["noise"]) == ([4] * TEXTS, tokens.floor(torch.float32))
    assert tokens.said(small, scores, ids) == tokens.said(trained, scores[:, 1:], ids) == {}


def test_outputs_that_differ_in_a_bit_are_told_apart():
    golden = torch.ones(4, 8, dtype=torch.float64)
    found = []
    for nudge in (0.0, 0.0, 2**-7):
        judge = Judge("ATTN-1")
        for output in (golden.bfloat16(), (golden + nudge).bfloat16().mT.contiguous().mT):
            judge(output, golden.bfloat16(), golden)
        found.append(judge.evidence["bits"])

    assert found[0] == found[1] != found[2]
