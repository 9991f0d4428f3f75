"""A claim is understood whole or refused, held to its own bound, and has its row."""

import contextlib
import dataclasses
import datetime
import json
import math
import time
from types import SimpleNamespace

import pytest
import torch

from fixtures import audit, claimed, deployment, meters, random_weights, served, text
from fixtures.judgement import Judge, Unverified
from fixtures.statistics import Interval
from fixtures.tokenizing import tokenize
from fixtures.turns import Turns, in_turn
from reports import claims, promises
from reports.record import Record
from suites.meta.conftest import ROOT

CLAIM = {"name": "it", "says": "it fits", "measure": "peak memory", "at_most": "9.5 GiB"}


@pytest.mark.parametrize(
    ("said", "low", "high", "claimed_as"),
    [
        ({"at_most": "9.5 GiB"}, None, 9.5 * 2**30, "≤ 9.5"),
        ({"at_least": "9.5 GB"}, 9.5e9, None, "≥ 9.5"),
        ({"equals": "20_480 B"}, 20480, 20480, "= 20,480"),
        ({"about": "10 GB", "margin": "5 %"}, 9.5e9, 10.5e9, "10 ± 5 %"),
        ({"about": "10 GB", "margin": "500 MB"}, 9.5e9, 10.5e9, "10 ± 500 MB"),
        ({"measure": "kv reduction", "equals": 48}, 48, 48, "= 48"),
        ({"measure": "time", "at_most": "300 ms"}, None, 0.3, "≤ 300"),
        ({"measure": "top-1 agreement", "quantizer": "q", "at_least": "99 %"}, 0.99, None, "≥ 99"),
    ],
)
def test_a_bound_is_read_with_its_unit(said, low, high, claimed_as):
    found = claimed.parse({k: v for k, v in CLAIM.items() if k != "at_most"} | said)

    assert found.claimed == claimed_as
    assert (found.low, found.high) == (
        low if low is None else pytest.approx(low),
        high if high is None else pytest.approx(high),
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('measure = "peak memroy"\nat_most = "1 GB"', r"claim 1\.measure: nothing here tests 'peak memroy'"),
        ('measure = "peak memory"\nat_most = "1 gb"', r"claim 1\.at_most must be text such as .* in B, kB"),
        ('measure = "peak memory"\nat_most = 9.5', r"claim 1\.at_most must be text"),
        ('measure = "kv reduction"\nequals = "3"', r"claim 1\.equals must be a number"),
        ('measure = "peak memory"', r"claim 1\.at_most: a claim has one bound"),
        (
            'measure = "peak memory"\nat_most = "1 GB"\nat_least = "1 GB"',
            r"at_most and at_least: a claim has one bound",
        ),
        ('measure = "peak memory"\nabout = "1 GB"', r"claim 1\.margin: `about` says how far"),
        ('measure = "peak memory"\nat_most = "1 GB"\nbatch = 0', r"claim 1\.batch must be a whole number, 1 or more"),
        ('measure = "peak memory"\nat_most = "1 GB"\nbatch = true', r"claim 1\.batch must be a int, is True"),
        ('measure = "peak memory"\nat_most = "1 GB"\nbach = 1', r"unknown key claim 1\.bach; did you mean 'batch'\?"),
        ('measure = "peak memory"\nat_most = "1 GB"\ndtype = "bf16"', r"claim 1\.dtype must be one of float32"),
        ('measure = "weight bytes"\nat_most = "1 GB"\nbatch = 1', r"claim 1\.batch: weight bytes has none"),
        ('measure = "perplexity ratio"\nat_most = 1.1', r"claim 1\.quantizer is missing"),
        ('measure = "speed ratio"\nat_least = 2', r"claim 1\.against is missing"),
        ('measure = "speed ratio"\nat_least = 2\nagainst = { atention = "x" }', r"claim 1\.against\.atention"),
        ('measure = "determinism"\nat_least = 2', r"claim 1\.at_least: this is held to a word"),
        ('measure = "time"\nat_most = "1 s"\ndevice = "gpu"', r"claim 1\.device must be one of cpu, cuda"),
    ],
)
def test_what_is_no_claim_is_refused_with_its_key(tmp_path, lines, message):
    toml = tmp_path / "deployment.toml"
    toml.write_text(f'[[claim]]\nname = "it"\nsays = "it is so"\n{lines}\n', encoding="utf-8")

    with pytest.raises(deployment.BadInput, match=rf"deployment\.toml: .*{message}"):
        deployment.read(toml, datetime.date(2026, 11, 24))


def test_two_claims_of_one_name_are_refused(tmp_path):
    toml = tmp_path / "deployment.toml"
    one = '[[claim]]\nname = "it"\nsays = "it is so"\nmeasure = "time"\nat_most = "1 s"\n'
    toml.write_text(one * 2, encoding="utf-8")

    with pytest.raises(deployment.BadInput, match="two claims have the name 'it'"):
        deployment.read(toml, datetime.date(2026, 11, 24))


@pytest.mark.parametrize("file", sorted((ROOT / "fixtures" / "deployments").glob("*.toml")), ids=lambda f: f.stem)
def test_deployments_that_ship_are_understood(file):
    assert deployment.read(file, datetime.date(2026, 11, 24)).measured


def test_every_measure_has_a_check():
    tested = {p.capability for p in promises.find(ROOT / "suites") if p.area == "claims"}

    assert tested == {measure.family for measure in claimed.MEASURES.values()}


RATIO = {"name": "it", "says": "it is so", "measure": "speed ratio", "against": {}}


@pytest.mark.parametrize(
    ("said", "found", "outcome"),
    [
        ({"at_least": 2}, 2.0, "passed"),
        ({"at_least": 2}, 1.99, "failed"),
        ({"at_most": 2}, 2.01, "failed"),
        ({"at_least": 2}, math.nan, "failed"),
        ({"at_least": 2}, Interval(3, 2.1, 4, 0.4, 8), "passed"),
        ({"at_least": 2}, Interval(3, 1.9, 4, 0.4, 8), "inconclusive"),
        ({"at_least": 2}, Interval(1.5, 1.2, 1.9, 0.1, 8), "failed"),
        ({"about": 2, "margin": 0.5}, Interval(2, 1.8, 2.2, 0.1, 8), "passed"),
        ({"about": 2, "margin": 0.5}, Interval(2, 1.4, 2.6, 0.1, 8), "inconclusive"),
        ({"at_most": 2}, Interval(1, 0.9, 1.1, 0.05, 8), "passed"),
        ({"at_most": 2, "power": 0.1}, Interval(1, 0.9, 1.1, 0.05, 8), "inconclusive"),
        ({"at_most": 2, "power": 0.2}, Interval(1, 0.9, 1.1, 0.05, 8), "passed"),
        # What was too much for a GPU is at least as much as that had.
        ({"at_most": 2}, Interval(3, 3, math.inf, 0, 1), "failed"),
        ({"at_most": 4}, Interval(3, 3, math.inf, 0, 1), "inconclusive"),
        ({"at_least": 2}, Interval(3, 3, math.inf, 0, 1), "passed"),
    ],
)
def test_what_was_measured_is_held_to_the_bound(said, found, outcome):
    claim, judge = claimed.parse(RATIO | said), Judge("CLAIM-5")

    judge.claim(claim, found)

    assert {j.outcome for j in judge.judgements} - {"passed"} == {outcome} - {"passed"}
    assert judge.evidence["claim"]["detectable"]


def test_what_a_gpu_gave_a_request_before_it_had_no_more_is_what_the_request_took_at_least(monkeypatch):
    def out_of_memory(run, device):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(audit, "peak_bytes", out_of_memory)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 400)
    loaded = audit.Loaded(None, 1000, claimed.Side(), contextlib.nullcontext)

    found = loaded.memory(SimpleNamespace(device=torch.device("cuda")))

    assert [(m.low, m.high) for m in found] == [(1300, math.inf), (300, math.inf)]


def test_a_request_takes_as_long_as_who_asked_has_to_wait():
    def run():
        time.sleep(0.05)

    assert meters.elapsed(run, torch.device("cpu")) >= 0.05 > meters.computing(run, torch.device("cpu"))


def test_agreement_is_not_claimed_of_more_tokens_than_a_document_has():
    with pytest.raises(Unverified, match=r"32,768 tokens are wanted, and one has \d+"):
        tokenize(SimpleNamespace(checkpoint=lambda: served.checkpoint(served.locate(""))), text.documents(), 32768)


@pytest.mark.parametrize(("seen", "outcome"), [("sdpa", "passed"), ("eager", "failed")])
def test_a_word_is_held_to_the_word(seen, outcome):
    claim = claimed.parse({"name": "it", "says": "so", "measure": "attn_implementation", "equals": "sdpa"})

    assert claim.hold(seen).outcome == outcome


def record(outcome, *, crash=False, measured=None, **about):
    evidence = {"claim": {"measured": measured, "interval": (8.0, 9.0), "detectable": "any"}} if measured else {}
    about = {"promise": "CLAIM-2", "parameters": {"claim": "it"}, **about}
    return Record(
        "suites/claims/t.py::t[it-cpu]", statement="", area="", outcome=outcome, crash=crash, evidence=evidence, **about
    )


RUN = {"claims": [claimed.parse(CLAIM).facts()]}


@pytest.mark.parametrize(
    ("records", "word", "measured"),
    [
        ([record("passed", measured=8.5)], "CONFIRMED", "8.5 (8 … 9)"),
        ([record("failed", measured=8.5)], "REFUTED", "8.5 (8 … 9)"),
        ([record("waived", measured=8.5)], "REFUTED", "8.5 (8 … 9)"),
        ([record("inconclusive", measured=8.5)], "INCONCLUSIVE", "8.5 (8 … 9)"),
        ([record("failed", crash=True)], "INCONCLUSIVE", ""),
        ([record("unverified")], "NOT TESTABLE HERE", ""),
        ([record("passed", measured=8.5, parameters={"claim": "another"})], "NOT ASKED", ""),
        ([], "NOT ASKED", ""),
    ],
)
def test_a_claim_has_its_word(records, word, measured):
    (row,) = claims.rows(records, RUN)

    assert (row.claim, row.claimed, row.unit) == ("it fits", "≤ 9.5", "GiB")
    assert (row.word, row.measured) == (word, measured)


NAMED = {"name": "sdpa", "kind": "attention", "says": "relies on sdpa", "promises": []}
CONTEXT = {"name": "context", "kind": "context", "says": "serves a context", "promises": ["POS-14"]}


@pytest.mark.parametrize(
    ("claim", "records", "word", "told"),
    [
        (NAMED, [record("passed", subject="llama, sdpa", parameters={})] * 2, "CONFIRMED", "2 passed"),
        (NAMED, [record("passed", subject="sdpa-flash", parameters={})], "NOT ASKED", ""),
        (
            NAMED,
            [record(o, subject="sdpa", parameters={}) for o in ("passed", "failed")],
            "REFUTED",
            "1 passed, 1 failed",
        ),
        (NAMED, [record("waived", subject="sdpa", parameters={})], "CONFIRMED", "1 waived"),
        (
            CONTEXT,
            [record(o, promise="POS-14", parameters={}) for o in ("passed", "unverified")],
            "NOT TESTABLE HERE",
            None,
        ),
        (CONTEXT, [record("passed", promise="POS-15", parameters={})], "NOT ASKED", ""),
    ],
)
def test_what_is_claimed_by_name_has_its_word(claim, records, word, told):
    (row,) = claims.rows(records, {"claims": [claim]})

    assert row.word == word
    assert told is None or row.measured == told


def test_a_run_without_claims_has_no_rows():
    assert claims.rows([record("passed")], {}) == []


def test_what_is_not_claimed_is_not_owed_and_neither_is_a_session_of_its_own(conformance):
    found = conformance(
        "suites/claims", "suites/positions/test_tables.py", "-k", "rope-default and 1000", "--require=core"
    )

    assert "no check of ATTN-1" in found.verdict, found.printed
    assert "CLAIM" not in found.verdict
    assert "TIME" not in found.verdict


def test_a_shape_becomes_a_checkpoint_that_loads_whole():
    from transformers import AutoModelForCausalLM

    case = random_weights.case(ROOT / "fixtures" / "deployments" / "gpt-bigcode-small.json")

    model, told = AutoModelForCausalLM.from_pretrained(case.checkpoint(), dtype="auto", output_loading_info=True)

    assert case.architecture == "gpt_bigcode"
    assert not told["missing_keys"]
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_report_says_that_claims_are_about_a_shape(conformance, tmp_path):
    shape = ROOT / "fixtures" / "deployments" / "gpt-bigcode-small.json"

    conformance("suites/positions/test_tables.py", "-k", "rope-default and 1000", f"--shape={shape}")

    (run,) = tmp_path.glob("*/run.json")
    assert "random weights of the shape gpt-bigcode-small" in json.loads(run.read_text(encoding="utf-8"))["model"]


def test_a_shape_that_has_no_room_is_not_written(tmp_path):
    case = random_weights.case(ROOT / "fixtures" / "deployments" / "octocoder.json")
    huge = case.config()
    huge.n_layer, huge.vocab_size = 1, 10**9

    with pytest.raises(Unverified, match=r"take 1228\d\.\d GB of files, and free are"):
        random_weights.write(huge, (tmp_path,))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("said", ["not json", "{}", '{"model_type": "warp"}'])
def test_what_is_no_shape_is_refused_with_its_file(tmp_path, said):
    (tmp_path / "config.json").write_text(said, encoding="utf-8")

    with pytest.raises(deployment.BadInput, match=r"config\.json: this is no shape"):
        random_weights.case(tmp_path / "config.json")


def test_two_ways_are_timed_in_turn_and_the_first_round_is_not_counted():
    called = []

    def way(name, took):
        called.append(name)
        return took

    turns = in_turn(lambda: way("a", 1.0 if called else 99.0), lambda: way("b", 2.0), rounds=3)

    assert called == ["a", "b"] * 4
    assert turns == Turns([1.0] * 3, [2.0] * 3)
    assert dataclasses.astuple(turns.ratio())[:3] == pytest.approx((2, 2, 2))
