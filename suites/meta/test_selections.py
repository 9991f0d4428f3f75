"""What was asked for is run or missed, and what cannot be asked for is refused."""

from itertools import groupby

import pytest

from suites.meta.conftest import FAILS, PASSES, ROOT


def test_zero_checks_are_unverified(verdict_of):
    found = verdict_of([PASSES], "", "-k", "nothing_of_that_name")

    assert found.verdict.startswith("unverified: no check ran")
    assert found.code == 5


def test_checks_that_are_deselected_are_missed(conformance):
    ask = "suites/memory/test_kv_cache.py"
    gone = f"{ask}::test_cache_takes_the_predicted_bytes[float32-dynamic-bloom-alibi-cpu]"
    found = conformance(ask, "--deselect", gone)

    assert found.verdict.startswith("partial:"), found.printed
    assert "1 checks deselected" in found.verdict
    assert found.code == 6


def test_a_file_that_is_ignored_is_missed(conformance):
    found = conformance("suites/memory", f"--ignore-glob={ROOT}/suites/memory/test_[!g]*.py", "--allow-partial")

    assert found.verdict.startswith("partial: "), found.printed
    assert "no check of MEM-1, " in found.verdict


@pytest.mark.parametrize(
    ("ask", "about"),
    [
        (["suites/quantization", "-k", "served"], lambda params: params["quantizer"].name),
        (["suites/kv_cache/test_decode.py"], lambda params: (params["case"].name, params["dtype"])),
    ],
    ids=["who quantized a real model", "whose cache is decoded with"],
)
def test_what_checks_have_in_common_is_asked_all_at_once(conformance, ask, about):
    class Seen:
        def pytest_collection_finish(self, session):
            self.items = [item.callspec.params for item in session.items]

    seen = Seen()
    conformance(*ask, "--collect-only", plugins=[seen])
    asked = [about(params) for params in seen.items]

    assert len(asked) > 20
    assert len([*groupby(asked)]) == len(set(asked))


def test_everything_is_owed_where_core_is_required(conformance):
    found = conformance("suites/meta/test_verdict.py", "--require=core")

    assert found.verdict.startswith("unverified: no check ran"), found.printed
    assert found.code == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model=/nowhere/at/all"], "no such path"),
        ([f"--model={__file__}"], "neither a GGUF file nor a folder"),
        (["--checkpoints=/nowhere/at/all"], "no reference models are there"),
    ],
)
def test_bad_options_are_refused(verdict_of, options, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = verdict_of([PASSES], "", *options)

    assert found.code == 4
    assert pytest.RaisesExc(Exception, match=message).matches(Exception(found.printed)), found.printed


def test_a_check_whose_docstring_is_no_promise_is_refused(verdict_of):
    found = verdict_of([PASSES, FAILS.replace("TEST-2:", "TEST-2 :")])

    assert found.code == 4
    assert "its docstring must begin with a promise" in found.printed
