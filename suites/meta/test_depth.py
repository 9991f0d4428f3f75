"""What a run looks at: tiers, capabilities that are claimed, failures that are known."""

import pytest
from packaging.specifiers import SpecifierSet

from fixtures.deployment import known_failures

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


@pytest.mark.parametrize(
    "waiver", known_failures(), ids=lambda w: "-".join([w.promise, w.subject, *w.parameters.values()])
)
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


def test_an_unknown_capability_is_an_error(conformance, tmp_path):
    found = conformance(*HIDDEN_NAN, claiming(tmp_path, "telepathy"))

    assert "claims.capabilities: 'telepathy' is unknown" in found.printed
    assert found.code == 4


@pytest.mark.parametrize(("options", "count"), [((), 0), (("--tier", "full"), 1)], ids=["standard", "full"])
def test_the_wider_architectures_are_of_tier_full(conformance, options, count):
    ask = ("suites/attention/test_model_logits.py", "-k", "test_logits and sdpa-math and olmo2-output and float32")
    found = conformance(*ask, *options)

    assert [r.outcome for r in found.records] == ["passed"] * count, found.printed
