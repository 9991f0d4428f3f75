"""A waiver excuses what it names and nothing else, and a deployment file is understood whole or refused."""

import datetime
from types import SimpleNamespace

import pytest

from fixtures import bench, quantizers
from suites.meta.conftest import CRASHES, FAILS, PASSES

WAIVER = """
    [[waiver]]
    promise = "TEST-2"
    reason = "known"
    owner = "me"
    link = "https://example.org/1"
    expires = {expires}
"""
VALID = WAIVER.format(expires="2999-01-01")
SLACK = """
    [[slack]]
    promise = "ATTN-1"
    quantity = "gain"
    dtype = "float32"
    slack = 0.01
    reason = "a slow link"
    owner = "me"
    expires = 2999-01-01
"""
OFF = '''
    def test_is_off(judge):
        """ATTN-1: a backend's output MUST be as close to float64 attention as eager attention is in the same dtype."""
        golden = torch.linspace(1, 2, 512, dtype=torch.float64).reshape(1, 64, 8)
        noise = 1e-6 * torch.randn(golden.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        judge((golden + noise + 1e-6 * golden).float(), (golden + noise).float(), golden)
'''


@pytest.mark.parametrize(
    ("checks", "deployment", "verdict", "code"),
    [
        ([PASSES, FAILS], VALID, "conformant: 1 passed, 1 waived", 0),
        ([PASSES, CRASHES], VALID, "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, FAILS.replace("1, 2", "2, 2")], VALID, "bad input: stale waiver for TEST-2", 4),
        ([PASSES, FAILS], VALID + 'versions = {torch = "<1"}', "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, FAILS.replace("1, 2", "2, 2")], VALID + 'versions = {torch = "<1"}', "conformant: 2 passed", 0),
        ([PASSES, FAILS], VALID + 'subject = "sdpa*"', "non-conformant: 1 passed, 1 failed", 1),
    ],
)
def test_waiver(verdict_of, checks, deployment, verdict, code):
    found = verdict_of(checks, deployment)

    assert found.verdict.startswith(verdict), found.printed
    assert found.code == code


def test_a_waiver_may_be_for_a_subject_of_another_machine(verdict_of):
    names = "flash_attention_2 paged-sdpa flex sdpa-cudnn quanto-int4-channel gptq-int4 fp8 rope-proportional".split()
    found = verdict_of([PASSES, FAILS], "".join(f"{VALID}    subject = '{name}'\n" for name in names))

    assert found.verdict.startswith("non-conformant: 1 passed, 1 failed"), found.printed


@pytest.mark.parametrize("library", quantizers.LIBRARIES, ids=lambda library: library.__name__)
def test_a_waiver_can_name_all_that_a_library_registers(library, monkeypatch):
    monkeypatch.setattr(library, "installed", lambda *packages: True, raising=False)
    capable = SimpleNamespace(gpus=(SimpleNamespace(capability="9.0"),))
    monkeypatch.setattr(library, "probe", lambda: capable, raising=False)
    names = set()

    library.register_all(lambda name, **declared: names.add(name))

    assert names == library.NAMES
    assert names <= bench.ELSEWHERE


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
        (VALID + "since = 'ever'", r"waiver 1\.since must be a date, is 'ever'"),
        (SLACK.replace("owner", "ower"), r"unknown key slack 1\.ower; did you mean 'owner'"),
        (SLACK.replace('reason = "a slow link"', ""), r"slack 1 lacks reason"),
        (SLACK.replace("ATTN-1", "ATTN-99"), r"slack 1\.promise: nothing is calibrated for 'ATTN-99'"),
        (SLACK.replace("gain", "gian"), r"slack 1\.quantity: nothing is calibrated for 'gian'; there are gain,"),
        (SLACK.replace("float32", "int8"), r"slack 1\.dtype: nothing is calibrated for 'int8'"),
        (SLACK.replace("0.01", "0.0"), r"slack 1\.slack must be more than 0"),
        (SLACK.replace("0.01", "'9'"), r"slack 1\.slack must be a float, is '9'"),
        (SLACK.replace("2999", "2020"), r"slack 1 expired on 2020-01-01"),
        (VALID + "versions = {pytorch = '>1'}", r"versions\.pytorch is not among what a run records"),
        (VALID + "versions = {torch = ['2']}", r"versions\.torch = \['2'\] is not a range"),
        (VALID + "parameters = {dtpye = 'float*'}", r"none of its checks has a parameter dtpye; they have none"),
        (VALID + "parameters = {dtype = 1}", r"waiver 1\.parameters\.dtype must be a pattern such as 'float\*', is 1"),
        (VALID.replace('owner = "me"', 'owner = ""'), r"waiver 1 lacks owner"),
        (VALID.replace("TEST-2", ""), r"must name a promise or a check, and not both"),
        (SLACK.replace("0.01", "inf"), r"slack 1\.slack must be more than 0"),
    ],
)
def test_bad_input_is_refused_with_file_and_key(verdict_of, deployment, message):
    found = verdict_of([PASSES, FAILS], deployment)

    assert found.code == 4
    assert pytest.RaisesExc(Exception, match=message).matches(Exception(found.printed)), found.printed


def test_a_slack_that_a_deployment_changes_is_used_and_shown(verdict_of, tmp_path):
    calibrated, changed = verdict_of([OFF]), verdict_of([OFF], SLACK)

    (record,) = changed.records
    gain = next(j for j in record.judgements if j["quantity"] == "gain")
    assert (calibrated.code, changed.code) == (0, 1), calibrated.printed
    assert gain["allowed"] == 0.01
    assert gain["detail"].startswith("slack 0.01: set by me until 2999-01-01: a slow link; calibrated ")
    assert record.evidence["slacks"]["ATTN-1, gain, float32"]["slack"] == 0.01
    (line,) = (line for line in report(tmp_path).splitlines() if "| a slow link" in line)
    assert "ATTN-1, gain, float32" in line


def test_a_report_lists_what_was_waived_and_for_how_long(verdict_of, tmp_path):
    since = datetime.date.today() - datetime.timedelta(days=40)
    found = verdict_of([PASSES, FAILS], f"{VALID}since = {since}")

    assert found.code == 0
    assert "| 40 days" in report(tmp_path)


def report(folder):
    """The report of the last run."""
    return max(folder.glob("run-*/report.md"), key=lambda path: path.stat().st_mtime_ns).read_text(encoding="utf-8")
