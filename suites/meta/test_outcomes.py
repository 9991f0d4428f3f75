"""Every way a check can end ends in the right verdict and exit code."""

import pytest

from suites.meta.conftest import CRASHES, FAILS, PASSES

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


@pytest.mark.parametrize(
    ("checks", "verdict", "code"),
    [
        ([PASSES], "conformant: 1 passed", 0),
        ([PASSES, FAILS], "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, NAN], "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, CRASHES], "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, VACUOUS], "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, SKIPS], "partial: 1 passed, 1 unverified", 6),
        ([PASSES, XFAILS], "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, TEARDOWN], "non-conformant: 1 passed, 1 failed", 1),
        ([SKIPS], "unverified: 1 unverified", 5),
        ([PASSES, SKIPS_LATE], "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, SKIPS_AFTER], "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, ANOTHER_DTYPE], "non-conformant: 1 passed, 1 failed", 1),
        ([PASSES, LEAVES, FAILS], "partial: 1 passed; no check of TEST-2; stopped before its end", 6),
    ],
)
def test_outcome(verdict_of, checks, verdict, code):
    found = verdict_of(checks)

    assert found.verdict.startswith(verdict), found.printed
    assert found.code == code


UNDECIDED = """
    SEEN = []

    def test_draws(judge, draw):
        '''TEST-1: one MUST be one.'''
        from fixtures.judgement import Undecided

        SEEN.append(torch.rand(1, generator=draw).item())
        if len(SEEN) < {draws}:
            judge.exactly("of inputs that are given up", 1, 2)
            raise Undecided
        judge.exactly("inputs", len(set(SEEN)), {draws})
"""


def test_inputs_whose_truth_is_undecided_are_drawn_again(verdict_of):
    found = verdict_of([UNDECIDED.format(draws=3)])

    assert found.code == 0, found.printed
    assert found.records[0].evidence["drawn again"] == 2
    assert [j["quantity"] for j in found.records[0].judgements] == ["inputs"]


def test_truth_that_stays_undecided_is_inconclusive(verdict_of):
    found = verdict_of([PASSES, UNDECIDED.format(draws=100)])

    assert "1 inconclusive" in found.verdict, found.printed
    assert found.code == 6


def test_a_warning_under_filters_of_its_own_does_not_end_the_run(verdict_of):
    warns = '''
    def test_warns(judge):
        """TEST-1: one MUST be one."""
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("heard, and passed on")
        judge.exactly("one", 1, 1)
    '''
    found = verdict_of([warns], "", "-W", "error")

    assert found.code == 0, found.printed
    assert "heard, and passed on" in str(found.records[0].warnings)


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
