"""The served model: where it comes from, what is refused, and a cache that nothing can spoil."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from fixtures import served
from fixtures.bad_input import BadInput
from fixtures.models import Workshop
from suites.meta.faults import FAULTS


@pytest.fixture
def folder(tmp_path):
    """A small checkpoint of our own."""
    return shutil.copytree(Workshop(0, tmp_path / "workshop").checkpoint("llama-gqa"), tmp_path / "model")


def truncate(path, to):
    with path.open("r+b") as stream:
        stream.truncate(to)


def test_a_truncated_safetensors_file_is_refused(folder):
    truncate(folder / "model.safetensors", 100_000)

    with pytest.raises(BadInput, match=r"model\.safetensors: truncated, 100,000 of [\d,]+ bytes; fetch it again"):
        served.locate(str(folder))


def test_an_empty_safetensors_file_is_refused(folder):
    truncate(folder / "model.safetensors", 0)

    with pytest.raises(BadInput, match="not a readable safetensors file"):
        served.locate(str(folder))


@pytest.mark.parametrize("size", [0, 1000, 50_000_000])
def test_a_truncated_gguf_file_is_refused(tmp_path, size):
    cut = tmp_path / "cut.gguf"
    shutil.copy(served._embedded(), cut)
    truncate(cut, size)

    with pytest.raises(BadInput, match="truncated"):
        served.locate(str(cut))


def test_a_missing_shard_is_refused(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")

    with pytest.raises(BadInput, match=r"1 files of the index are missing, model-2\.safetensors first"):
        served.locate(str(folder))


def test_code_of_a_checkpoint_is_refused_unless_trusted(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {}}), encoding="utf-8")

    with pytest.raises(BadInput, match="--trust-remote-code"):
        served.locate(str(folder))
    assert served.locate(str(folder), trust_remote_code=True).trust_remote_code


BROUGHT = """
from transformers import LlamaConfig, LlamaForCausalLM

class AcmeConfig(LlamaConfig):
    model_type = "acme-llm"

class AcmeForCausalLM(LlamaForCausalLM):
    config_class = AcmeConfig
"""


@pytest.fixture
def foreign(folder):
    """The checkpoint, of an architecture that it brings."""
    (folder / "modeling_acme.py").write_text(BROUGHT, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    brought = {"AutoConfig": "modeling_acme.AcmeConfig", "AutoModelForCausalLM": "modeling_acme.AcmeForCausalLM"}
    told = json.dumps({**config, "model_type": "acme-llm", "auto_map": brought})
    (folder / "config.json").write_text(told, encoding="utf-8")
    return folder


def test_an_architecture_that_a_trusted_checkpoint_brings_is_served(conformance, foreign):
    ask = ("suites/weights/test_release.py", "suites/quantization/test_engagement.py", "-k", "served")
    found = conformance(*ask, f"--model={foreign}", "--trust-remote-code")

    assert found.verdict.startswith("conformant"), found.printed
    assert {record.area for record in found.records} == {"weights", "quantization"}


def test_a_trusted_checkpoint_whose_code_is_not_there_is_refused(foreign):
    config = json.loads((foreign / "config.json").read_text(encoding="utf-8"))
    del config["auto_map"]["AutoModelForCausalLM"]
    (foreign / "config.json").write_text(json.dumps(config), encoding="utf-8")

    with pytest.raises(BadInput, match="auto_map names no AutoModelForCausalLM for 'acme-llm'"):
        served._config(served.locate(str(foreign), trust_remote_code=True))


def test_pickled_weights_are_refused_unless_allowed(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    with pytest.raises(BadInput, match="--allow-pickle"):
        served.locate(str(folder))
    assert served.locate(str(folder), allow_pickle=True).allow_pickle


def test_a_folder_without_a_config_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")

    with pytest.raises(BadInput, match=r"config\.json cannot be read"):
        served.locate(str(tmp_path))


def test_a_cached_conversion_that_was_changed_is_made_again(tmp_path, monkeypatch):
    release = served.locate("")
    good = served.checkpoint(release)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spoiled = served.checkpoint_folder(release)
    shutil.copytree(good, spoiled)
    with (spoiled / "config.json").open("a", encoding="utf-8") as stream:
        stream.write(" ")
    made = []
    monkeypatch.setattr(served, "_convert", lambda release, folder: made.append(folder))

    served.checkpoint(release)

    assert made == [spoiled]


def test_a_conversion_under_a_fault_is_the_healthy_one(tmp_path, monkeypatch):
    release = served.locate("")
    healthy = (served.checkpoint(release) / "manifest.json").read_text(encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    with FAULTS["one_bit_is_flipped"].inject():
        converted = served.checkpoint(release)

    assert converted.is_relative_to(tmp_path)
    assert (converted / "manifest.json").read_text(encoding="utf-8") == healthy


def test_a_users_folder_is_a_model_like_any_other(conformance):
    folder = served.checkpoint(served.locate(""))
    found = conformance(f"--model={folder}", "-k", "served and float32 and not kv_cache and not agreement")

    assert found.verdict.startswith("conformant:"), found.printed
    assert {r.promise for r in found.records} >= {
        "ATTN-2",
        "POS-1",
        "POS-3",
        "MEM-1",
        "WEIGHTS-1",
        "WEIGHTS-2",
        "WEIGHTS-3",
    }
