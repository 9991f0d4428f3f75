"""Every check rejects the faults it exists for, and is quiet without them."""

from functools import cache

import pytest

from reports import promises
from suites.meta.conftest import ROOT
from suites.meta.faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_fault_is_rejected_by_its_promise(fault, ask):
    healthy = healthy_run(fault, ask)
    with fault.inject():
        faulty = ask(fault)

    passed = {r.check for r in healthy.records if r.outcome == "passed"}
    rejected = [r for r in faulty.records if r.outcome == "failed" and not r.crash and r.promise == fault.promise]
    assert healthy.verdict.startswith("conformant"), healthy.printed
    assert {r.check for r in rejected} <= passed
    assert {r.device for r in rejected} == {r.device for r in healthy.records}, faulty.printed
    assert faulty.code == 1


@pytest.fixture
def ask(conformance, tmp_path):
    """Run the checks that ought to see a fault, for a deployment that claims what they are about."""

    def run(fault):
        path, words = fault.checks
        deployment = tmp_path / "deployment.toml"
        claims = f"[claims]\ncapabilities = {list(fault.claims)}\n{fault.states}"
        deployment.write_text(claims, encoding="utf-8")
        return conformance(ROOT / "suites" / path, "-k", words, f"--deployment={deployment}", *fault.options)

    return run


HEALTHY = {}


def healthy_run(fault, ask):
    """The same checks without a fault, once for each question."""
    question = fault.checks, fault.claims, fault.options, fault.states
    if question not in HEALTHY:
        HEALTHY[question] = ask(fault)
    return HEALTHY[question]


@cache
def known():
    return {p.id for p in promises.find(ROOT / "suites")}


def test_every_promise_has_at_least_two_faults():
    count = {promise: sum(f.promise == promise for f in FAULTS.values()) for promise in known()}

    assert {promise: n for promise, n in count.items() if n < 2} == {}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_fault_says_what_it_is(fault):
    assert fault.statement
    assert fault.source
    assert fault.unseen
    assert fault.promise in known()
