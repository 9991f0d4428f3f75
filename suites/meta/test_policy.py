"""Which promises are owed, and how deep a run looks."""

from types import SimpleNamespace

import pytest

from fixtures import policy
from fixtures.bad_input import BadInput
from reports import promises
from suites.meta.conftest import PASSES

IDS = {"KV-1": "kv_cache", "KV-2": "kv_cache", "MEM-1": "memory"}
KNOWN = [SimpleNamespace(id=promise, area=area) for promise, area in IDS.items()]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["ours"], {"KV-2", "MEM-1"}),
        (["kv_cache"], {"KV-1", "KV-2"}),
        (["kv_cache", "ours"], {"KV-1", "KV-2", "MEM-1"}),
        (["everything"], {"KV-1", "KV-2", "MEM-1"}),
        ([], set()),
    ],
)
def test_a_policy_says_which_promises_are_owed(tmp_path, asked, found):
    file = tmp_path / "policy.toml"
    file.write_text('[owed]\nours = ["KV-2", "memory"]\neverything = ["*"]', encoding="utf-8")

    assert policy.owed(file, policy.read(file), asked, KNOWN) == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[ownd]\nours = []", r"policy\.toml: unknown key ownd; known is owed"),
        ("[owed]\nours = 'KV-1'", r"policy\.toml: owed\.ours must be a list"),
        ("[owed]\nours = ['KV-9']", r"policy\.toml: owed\.ours: 'KV-9' is neither an area nor a promise"),
        ("[owed]\ntheirs = []", r"policy\.toml: there is no set 'ours'; there are kv_cache, memory, theirs"),
        ("owed", r"policy\.toml: "),
    ],
)
def test_a_policy_that_is_not_understood_is_refused(tmp_path, text, told):
    file = tmp_path / "policy.toml"
    file.write_text(text, encoding="utf-8")

    with pytest.raises(BadInput, match=told):
        policy.owed(file, policy.read(file), ["ours"], KNOWN)


def test_the_policy_that_is_shipped_owes_every_promise_of_every_area():
    known = promises.find()

    sets = policy.read(policy.DEFAULT)

    assert policy.owed(policy.DEFAULT, sets, ["extended"], known) == {p.id for p in known}
    assert policy.owed(policy.DEFAULT, sets, ["core"], known)


def test_what_is_required_or_claimed_is_owed_whatever_was_selected(verdict_of):
    found = verdict_of([PASSES], "[claims]\ncapabilities = ['hidden-nan']", "--require=memory,weights")

    assert found.verdict.startswith("partial: 1 passed; no check of ATTN-7, MEM-1, "), found.printed
    assert found.verdict.endswith(", WEIGHTS-3, WEIGHTS-4 (checks only)")
    assert found.code == 6


def test_a_set_that_is_not_there_is_refused(verdict_of):
    found = verdict_of([PASSES], "", "--require=coer")

    assert found.code == 4
    assert "there is no set 'coer'" in found.printed


def test_tier_smoke_asks_each_check_once_of_each_subject(conformance):
    found = conformance("suites/memory/test_kv_cache.py", "--tier=smoke")

    caches = [r.parameters["kv_cache"] for r in found.records]
    assert found.verdict.startswith("conformant:"), found.printed
    assert "tier smoke" in found.verdict
    assert len(set(caches)) == len(caches) > 1
    assert {r.parameters["dtype"] for r in found.records} == {"float32"}


def test_tier_smoke_asks_nothing_that_compiles_for_each_question(conformance):
    """On a machine that has compiled nothing these were half of it."""
    found = conformance("suites/attention/test_shapes.py", "--tier=smoke")

    subjects = {r.subject for r in found.records}
    assert found.verdict.startswith("conformant:"), found.printed
    assert {"sdpa", "eager"} <= subjects
    assert "flex" not in subjects
