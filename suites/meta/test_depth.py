"""What a run looks at: tiers, capabilities that are claimed, failures that are known."""

import pytest
from packaging.specifiers import SpecifierSet
from transformers import cache_utils

from fixtures import kv_caches
from fixtures.waivers import known_failures

REFUSED = ("suites/attention/test_layout.py", "-k", "value_longer and sdpa-flash-cpu and float32")
HIDDEN_NAN = ("suites/attention/test_mask.py", "-k", "nan_in and eager and padding-100 and float32")


def claiming(tmp_path, capability):
    toml = tmp_path / "deployment.toml"
    toml.write_text(f"[claims]\ncapabilities = ['{capability}']\n", encoding="utf-8")
    return f"--deployment={toml}"


def test_what_a_healthy_library_gets_wrong_is_waived_and_said(conformance):
    found = conformance(*REFUSED)

    assert [r.outcome for r in found.records] == ["waived"], found.printed
    assert found.records[0].waiver["link"].startswith("https://")
    assert "1 waived" in found.verdict
    assert found.code == 0


def named(waiver):
    return "-".join([waiver.promise, waiver.subject, *waiver.parameters.values(), *waiver.versions.values()])


@pytest.mark.parametrize("waiver", known_failures(), ids=named)
def test_a_known_failure_says_where_it_ends(waiver):
    ends = [spec.operator for wanted in waiver.versions.values() for spec in SpecifierSet(wanted)]

    assert "<" in ends or "==" in ends
    assert waiver.reason
    assert waiver.link
    assert waiver.subject != "*" or waiver.parameters


def test_a_capability_is_nobodys_business_unless_it_is_claimed(conformance):
    found = conformance(*HIDDEN_NAN)

    assert found.records == []
    assert found.verdict.startswith("unverified")


def test_a_capability_that_is_claimed_and_lacking_fails(conformance, tmp_path):
    found = conformance(*HIDDEN_NAN, claiming(tmp_path, "hidden-nan"))

    assert [(r.promise, r.outcome) for r in found.records] == [("ATTN-7", "failed")], found.printed
    assert found.code == 1


ROUNDING = ["suites/kv_cache/test_quantized.py", "suites/kv_cache/test_window.py"]


@pytest.fixture
def nothing_rounds(monkeypatch):
    """A stack without optimum-quanto, HQQ and a transformers that has a cache in float8."""
    monkeypatch.setattr(kv_caches, "ROUNDED", {})
    monkeypatch.delattr(cache_utils, "Fp8QuantizedLayer", raising=False)


@pytest.mark.usefixtures("nothing_rounds")
def test_what_no_stack_has_to_have_is_not_owed_where_it_is_not_and_that_is_told(conformance):
    found = conformance(*ROUNDING)

    assert found.verdict.startswith("conformant: "), found.printed
    assert "no cache that rounds is here: KV-21, KV-22, KV-23 not owed" in found.printed


@pytest.mark.usefixtures("nothing_rounds")
def test_what_is_claimed_is_owed_wherever_it_is(conformance, tmp_path):
    toml = tmp_path / "deployment.toml"
    toml.write_text("[claims]\nkv_caches = ['quanto-int4-channel']\n", encoding="utf-8")
    found = conformance(*ROUNDING, f"--deployment={toml}")

    assert found.verdict.startswith("partial: "), found.printed
    assert {r.promise for r in found.records if r.outcome == "unverified"} >= {"KV-21", "KV-22", "KV-23"}


def test_an_unknown_capability_is_an_error(conformance, tmp_path):
    found = conformance(*HIDDEN_NAN, claiming(tmp_path, "telepathy"))

    assert "claims.capabilities: 'telepathy' is unknown" in found.printed
    assert found.code == 4


@pytest.mark.parametrize(("options", "count"), [((), 0), (("--tier", "full"), 1)], ids=["standard", "full"])
def test_the_wider_architectures_are_of_tier_full(conformance, options, count):
    ask = ("suites/attention/test_model_logits.py", "-k", "test_logits and sdpa-math and olmo2-output and float32")
    found = conformance(*ask, *options)

    assert [r.outcome for r in found.records] == ["passed"] * count, found.printed
