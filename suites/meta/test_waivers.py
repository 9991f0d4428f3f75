"""A waiver excuses what it names and nothing else, and a deployment file is understood whole or refused."""

import pytest

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
