"""Every check rejects the faults it exists for, and is quiet without them."""

from functools import cache

import pytest

from reports import promises
from suites.meta.conftest import ROOT
from suites.meta.faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_fault_is_rejected_by_its_promise(fault, conformance):
    path, words = fault.checks
    ask = (ROOT / "suites" / path, "-k", words)

    healthy = healthy_run(conformance, *ask)
    with fault.inject():
        faulty = conformance(*ask)

    passed = {r.check for r in healthy.records if r.outcome == "passed"}
    rejected = [r for r in faulty.records if r.outcome == "failed" and not r.crash and r.promise == fault.promise]
    assert healthy.verdict.startswith("conformant"), healthy.printed
    assert {r.check for r in rejected} <= passed
    assert {r.device for r in rejected} == {r.device for r in healthy.records}, faulty.printed
    assert faulty.code == 1


HEALTHY = {}


def healthy_run(conformance, *ask):
    """The same checks without a fault, once for each question."""
    if ask not in HEALTHY:
        HEALTHY[ask] = conformance(*ask)
    return HEALTHY[ask]


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
