"""Whatever stands in a file: a clear error that names it, or a right result.

A few seconds, the same each time; `SPIRITLEVEL_FUZZ=deep` tries thirty times as much, and something new each time.
"""

import contextlib
import copy
import datetime
import io
import json
import os
from types import SimpleNamespace

import pytest

from fixtures import deployment, estimate, policy, random_weights, waivers
from fixtures.bad_input import BadInput
from fixtures.configs import SMALL
from reports import render, verify
from reports.compare import main as compare
from reports.record import SCHEMA, parse
from reports.wording import private

hypothesis = pytest.importorskip("hypothesis", reason="it is not installed: `pip install hypothesis`")

from hypothesis import HealthCheck, example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from suites.meta.mutations import DATES, JUNK, mutated, toml  # noqa: E402

COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("quick", max_examples=60, derandomize=True, **COMMON)
settings.register_profile("deep", max_examples=2000, **COMMON)
settings.load_profile(os.environ.get("SPIRITLEVEL_FUZZ", "quick"))

TODAY = datetime.date(2026, 11, 25)
END = datetime.date(2999, 1, 1)
TOLD = {"reason": "known", "owner": "me", "expires": END}
LINK = "https://example.org/1"
CLAIM = {"name": "peak", "says": "it fits", "measure": "peak memory", "at_most": "9.5 GiB", "batch": 2, "context": 128}
FILE = {
    "deployment": {"name": "chat", "owner": "platform", "model": "", "shape": "config.json"},
    "claims": {"devices": ["cuda"], "attention": ["sdpa-flash"], "capabilities": ["hidden-nan"], "context": 4096},
    "claim": [
        CLAIM,
        {"name": "top-1", "says": "", "measure": "top-1 agreement", "quantizer": "a", "about": "9 %", "margin": "1 %"},
        {"name": "fast", "says": "", "measure": "speed ratio", "against": {"attention": "eager"}, "at_least": 2.0},
        {"name": "same", "says": "", "measure": "determinism", "equals": "same bits", "device": "cpu"},
    ],
    "waiver": [
        {"promise": "ATTN-*", "link": LINK, "versions": {"torch": ">=2"}, "parameters": {"dtype": "float*"}, **TOLD},
        {"check": "suites/a.py::test[x]", "subject": "sdpa*", "device": "cpu", "since": TODAY, "link": LINK, **TOLD},
    ],
    "slack": [{"promise": "ATTN-1", "quantity": "gain", "dtype": "float32", "slack": 0.5, **TOLD}],
}
ABOUT = {"promise": "ATTN-1", "check": "suites/a.py::test[x]", "subject": "sdpa-math", "device": "cpu"}


def understood(path):
    """The file as far as a run goes with it: read, and everything in it used once."""
    found = deployment.read(path, TODAY)
    waivers.excuse(found.waivers, {"torch": "2.13.0"}, ABOUT | {"parameters": {"dtype": "float32"}})
    waivers.stale(found.waivers, {"torch": "2.13.0"}, [])
    for claim in found.measured:
        held = claim.on("cpu").hold("same bits" if claim.word else 1.0)
        json.dumps([claim.facts(), held.outcome])
    private(json.loads(json.dumps(found.claimed())))
    return sorted(found.relied_on), found.name + found.owner + found.model, found.shape


def changed(tree, *place, to):
    """The tree with another value in one place; each is one that something fell over once."""
    tree = inside = copy.deepcopy(tree)
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = to
    return tree


@given(mutated(FILE, JUNK | DATES))
@example(changed(FILE, "waiver", 0, "versions", to={"torch": ["2"]}))
@example(changed(FILE, "waiver", 0, "parameters", to={"dtype": 1}))
@example(changed(FILE, "waiver", 0, "promise", to=""))
@example(changed(FILE, "claim", 0, "batch", to=True))
@example(changed(FILE, "claim", 0, "at_most", to="9" * 400 + " GiB"))
@example(changed(FILE, "claim", 2, "at_least", to=float("nan")))
@example(changed(FILE, "claim", 2, "at_least", to=10**400))
@example(changed(FILE, "slack", 0, "slack", to=float("inf")))
@example(changed(FILE, "deployment", "nam\x07e" * 500, to=""))
def test_a_deployment_file_is_understood_or_refused(tmp_path_factory, tree):
    file = tmp_path_factory.mktemp("fuzz") / "deployment.toml"
    file.write_text(toml(tree), encoding="utf-8")

    with refused(file):
        understood(file)


@contextlib.contextmanager
def refused(file):
    """Bad input may be refused, in words that begin with the file and end soon."""
    said = f"{file}: "
    with contextlib.suppress(BadInput):
        try:
            yield
        except BadInput as error:
            said = str(error)
            raise
    assert said.startswith(f"{file}: ")
    assert len(said) < 2000


@pytest.mark.parametrize("read", [lambda file: deployment.read(file, TODAY), policy.read])
@pytest.mark.parametrize("text", ["a = " + "[" * 50_000, "a = " + "9" * 5000, "a = 9999-99-99", "a = \xff", "a.b.c"])
def test_what_is_no_toml_is_refused(tmp_path, read, text):
    (tmp_path / "a.toml").write_text(text, encoding="latin-1")

    with pytest.raises(BadInput, match=r"a\.toml: "):
        read(tmp_path / "a.toml")


WRONG = [("batch", True), ("at_most", "9" * 400 + " GiB"), ("at_most", float("inf")), ("context", 1)]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=["true", "digits", "inf", "few"])
def test_what_would_hold_whatever_was_measured_is_no_claim(tmp_path, key, value):
    file = tmp_path / "deployment.toml"
    file.write_text(toml(changed(FILE, "claim", 0, key, to=value)), encoding="utf-8")

    with pytest.raises(BadInput, match=rf"claim 1\.{key} must be"):
        understood(file)


TABLES = [
    lambda tree: tree,
    lambda tree: tree["deployment"],
    lambda tree: tree["claims"],
    *(lambda tree, key=key, n=n: tree[key][n] for key in ("claim", "waiver", "slack") for n in range(len(FILE[key]))),
    lambda tree: tree["claim"][2]["against"],
    lambda tree: tree["waiver"][0]["versions"],
]


@given(st.sampled_from(TABLES), st.text(st.characters(exclude_categories=["Cs"]), max_size=9), JUNK | DATES)
def test_a_key_that_means_nothing_is_refused(tmp_path_factory, table, key, value):
    file, tree = tmp_path_factory.mktemp("fuzz") / "deployment.toml", json.loads(json.dumps(FILE, default=str))
    for one in (*tree["waiver"], *tree["slack"]):
        one |= {name: datetime.date.fromisoformat(one[name]) for name in ("expires", "since") if name in one}
    known = {name for names in deployment._TYPES.values() for name in names} | set(deployment.STACK)
    hypothesis.assume(key not in known)
    table(tree)[key] = value
    file.write_text(toml(tree), encoding="utf-8")
    with pytest.raises(BadInput):
        understood(file)


SETS = {"owed": {"core": ["KV-*", "memory"], "ours": ["KV-1"]}}
KNOWN = [SimpleNamespace(id=name, area=area) for name, area in (("KV-1", "kv_cache"), ("MEM-1", "memory"))]


@given(mutated(SETS, JUNK | DATES), st.sampled_from(["core", "ours", "memory", "cores", ""]))
def test_a_policy_is_understood_or_refused(tmp_path_factory, tree, asked):
    file = tmp_path_factory.mktemp("fuzz") / "policy.toml"
    file.write_text(toml(tree), encoding="utf-8")

    with refused(file):
        assert policy.owed(file, policy.read(file), [asked], KNOWN) <= {"KV-1", "MEM-1"}


JUDGED = {"quantity": "gain", "outcome": "passed", "rule": "at most", "measured": 0.5, "allowed": 1.0, "high": 1.0}
RECORD = {
    "check": "suites/attention/test_a.py::test[x]",
    "promise": "ATTN-1",
    "statement": "it MUST hold.",
    "area": "attention",
    "outcome": "failed",
    "subject": "sdpa-math, bnb-nf4",
    "device": "cpu",
    "parameters": {"dtype": "float32", "attention": "sdpa-math", "problem": "gqa", "quantizer": "bnb-nf4"},
    "judgements": [
        {**JUDGED, "headroom": 0.5, "healthy": 0.2, "dtype": "float32", "unit": "", "detail": "slack 1", "where": ""},
        {**JUDGED, "rule": "interval", "interval": [0.1, 0.2], "low": 0.0},
        {**JUDGED, "rule": "equal", "measured": "a", "allowed": "a"},
    ],
    "evidence": {
        "agreement": {"mean KL divergence": [0.1, 0.05, 0.2], "top-1 agreement": [0.9, 0.8, 1.0]},
        "tokens": 128,
        "slacks": {"ATTN-1, gain, any": {"slack": 2.0, "calibrated": 1.0, "reason": "", "owner": "", "expires": ""}},
        "curve": {"figure": "served model", "line": "a", "unit": "nats", "points": [[1, 2.0], [2, 3.0]]},
        "ratio": {"what": "a against b", "ratio": [1.0, 0.9, 1.1]},
        "claim": {"measured": 1.0, "interval": [0.5, 1.5], "unit": "GiB", "detectable": "0.1 GiB"},
    },
    "message": "ATTN-1: it MUST hold.\nit does not",
    "crash": False,
    "waiver": {"reason": "known", "owner": "me", "link": "", "expires": "2999-01-01"},
    "warnings": ["UserWarning: beware"],
    "seconds": 1.5,
    "seed": 0,
    "rerun": "pytest a",
    "environment": {"python": "3.12", "versions": {"torch": "2"}},
    "schema": SCHEMA,
}
FACTS = {"owed": ["ATTN-1", "KV-2"], "scope": "all", "seed": 0, "claims": [], "started": "2026-11-25", "notes": []}


def run_of(folder, tree):
    """A run's folder that holds this record."""
    (folder / "records.jsonl").write_text(json.dumps(tree) + "\n", encoding="utf-8")
    for name, told in (("run", FACTS), ("environment", RECORD["environment"])):
        (folder / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def test_the_record_that_is_changed_is_one(tmp_path):
    assert parse(json.dumps(RECORD)).headroom == 0.5
    assert render.main([str(run_of(tmp_path, RECORD))]) == 0


@given(mutated(RECORD, JUNK | st.none()))
@example(changed(RECORD, "evidence", "curve", "figure", to="9" * 5000))
@example(changed(RECORD, "evidence", "curve", "points", to=[[0, 1.0]]))
@example(changed(RECORD, "promise", to="A-" + "9" * 5000))
@example(changed(RECORD, "judgements", 0, "headroom", to="much"))
@example(changed(RECORD, "waiver", "owner", to=["me"]))
@example({"schema": SCHEMA})
def test_a_record_is_understood_or_refused(tmp_path_factory, tree):
    folder = run_of(tmp_path_factory.mktemp("fuzz"), tree)

    told = printed(lambda: render.main([str(folder)]), 0, 1)
    assert told == "" or "records.jsonl, line 1" in told
    assert verify.problems(folder)
    printed(lambda: verify.main([str(folder)]), 1)
    printed(lambda: compare([str(folder), str(folder)]), 0, 1, 3, 4)


def printed(main, *codes):
    """What a command prints, that ends with one of these codes."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            code = main()
        except SystemExit as end:
            code = end.code
    assert code in codes, out.getvalue()
    return out.getvalue()


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda said: said.encode("utf-8", "surrogatepass")))
def test_a_line_of_anything_is_no_record(tmp_path_factory, line):
    folder = run_of(tmp_path_factory.mktemp("fuzz"), RECORD)
    (folder / "records.jsonl").write_bytes(b"{}\n" + line + b"\n")

    assert "records.jsonl" in printed(lambda: render.main([str(folder)]), 1)
    assert verify.problems(folder)


SHAPES = [{"model_type": SMALL[name][0], "vocab_size": 512, **SMALL[name][1]} for name in ("llama-gqa", "mpt-alibi")]


@given(st.sampled_from(SHAPES).flatmap(lambda shape: mutated(shape, JUNK | st.none())))
@example(changed(SHAPES[0], "num_hidden_layers", to=10**9))
@example(changed(SHAPES[0], "hidden_size", to=10**30))
@example(changed(SHAPES[0], "num_attention_heads", to=0))
@example([SHAPES[0]])
def test_a_shape_is_understood_or_refused(tmp_path_factory, tree):
    file = tmp_path_factory.mktemp("fuzz") / "config.json"
    file.write_text(json.dumps(tree), encoding="utf-8")

    told = printed(lambda: estimate.main([str(file), "--context", "64"]) or 0, 0, 2)
    with refused(file):
        random_weights.case(file).config()
    assert "Traceback" not in told


@given(
    st.sampled_from(["none", "nf4", "nf4-double", "int4-g0", "int4-g-8", "int4-gx", "int8-g128", ""]),
    st.integers(-2, 2) | st.sampled_from([10**9, -(10**30), 10**30]),
    st.integers(-2, 2) | st.sampled_from([10**9, 10**30]),
)
def test_a_size_is_estimated_or_refused(quantizer, batch, context):
    asked = ["mistral-7b", f"--quantizer={quantizer}", f"--batch={batch}", f"--context={context}"]
    sound = batch > 0 and context > 0 and quantizer in ("none", "nf4", "nf4-double")

    told = printed(lambda: estimate.main(asked) or 0, 0 if sound else 2)

    assert "Traceback" not in told
