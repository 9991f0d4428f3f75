"""A release that cannot be served is refused before anything is asked of it, and no other is."""

import argparse
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from fixtures import served, soundness
from fixtures.bad_input import BadInput
from fixtures.configs import SMALL
from fixtures.models import Workshop


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Small checkpoints of our own."""
    return Workshop(0, tmp_path_factory.mktemp("workshop"))


@pytest.fixture
def folder(workshop, tmp_path):
    """One of them to spoil, in a path as a user may have it."""
    return shutil.copytree(workshop.checkpoint("llama-gqa"), tmp_path / "mon modèle 模型")


def serve(folder, **trusted):
    """What a run does with `--model` before it asks anything."""
    found = served.serve(str(folder), **{"trust_remote_code": False, "allow_pickle": False, **trusted})
    found.pytest_spiritlevel_model(lambda name, **declared: None)


def rewrite(folder, change):
    """Weights after `change(name, value)`, in the file that held them."""
    weights = {name: change(name, value) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return weights


def declare(folder, **said):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | said), encoding="utf-8")


def one(name, value, number):
    """The tensor with one other number in it, if it is of the second layer's feed-forward."""
    value = value.clone()
    if name == "model.layers.1.mlp.down_proj.weight":
        value[3, 5] = number
    return value


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (lambda name, value: torch.full_like(value, math.nan), 20),
        (lambda name, value: torch.full_like(value, math.nan, dtype=torch.bfloat16), 20),
        (lambda name, value: one(name, value, math.nan), 1),
        (lambda name, value: one(name, value.half(), -math.inf), 1),
    ],
    ids=["all", "bfloat16", "one", "infinite"],
)
def test_weights_that_are_no_numbers_are_refused(folder, change, count):
    rewrite(folder, change)

    with pytest.raises(BadInput, match=rf"模型: NaN or Inf in {count} of its tensors, model\..*; fetch it again"):
        serve(folder)


def test_pickled_weights_that_are_no_numbers_are_refused(folder):
    torch.save(rewrite(folder, lambda name, value: one(name, value, math.nan)), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    with pytest.raises(BadInput, match="NaN or Inf in 1 of its tensors"):
        serve(folder, allow_pickle=True)


def test_pickled_weights_of_an_old_torch_are_read_and_what_a_trainer_leaves_beside_them_is_not(folder):
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    torch.save(argparse.Namespace(), folder / "training_args.bin")
    (folder / "model.safetensors").unlink()

    serve(folder, allow_pickle=True)


@pytest.mark.parametrize("size", [0, 1000])
def test_pickled_weights_that_are_cut_are_refused(folder, size):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("r+b") as stream:
        stream.truncate(size)

    with pytest.raises(BadInput, match=r"pytorch_model\.bin cannot be read: .*; fetch it again"):
        serve(folder, allow_pickle=True)


def test_a_mask_may_hold_what_no_weight_may(tmp_path):
    file = tmp_path / "model.safetensors"
    for value, sound in ((-math.inf, True), (math.nan, False)):
        save_file({"attn.mask": torch.tensor([0.0, value]), "count": torch.tensor([1]), "no": torch.ones(0)}, file)
        assert all(soundness._is_sound(*pair) for pair in soundness._tensors("", file)) is sound


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"hidden_size": 256}, r"embed_tokens\.weight is \[512, 128\] in model\.safetensors, and \[512, 256\] by"),
        ({"vocab_size": 600}, r"embed_tokens\.weight is \[512, 128\] in model\.safetensors, and \[600, 128\] by"),
        ({"num_key_value_heads": 4}, r"k_proj\.weight is \[64, 128\] in model\.safetensors, and \[128, 128\] by"),
        ({"num_hidden_layers": 3}, r"9 of the tensors that it asks for are in no file, model\.layers\.2\."),
        ({"tie_word_embeddings": False}, r"1 of the tensors that it asks for are in no file, lm_head\.weight first"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(folder, said, told):
    declare(folder, **said)

    with pytest.raises(BadInput, match=rf"config\.json contradicts the weights: .*{told}.* from one release"):
        serve(folder)


def test_weights_that_a_config_has_no_place_for_keep_a_run_from_being_conformant(folder, conformance):
    declare(folder, num_hidden_layers=1)
    found = conformance(f"--model={folder}", "suites/weights/test_release.py", "-k", "served_weights and float32")

    assert found.verdict.startswith("unverified: 1 unverified"), found.printed
    assert "model.layers.1.input_layernorm.weight: this model calls it something else" in found.records[0].message


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("", r"config\.json cannot be read"),
        ("[]", r"config\.json: it holds a list, no object"),
        ("3", r"config\.json: it holds a int, no object"),
        ("{}", r"config\.json: this transformers cannot read it: "),
        ('{"model_type": "warp"}', r"config\.json: this transformers cannot read it: "),
        ('{"model_type": "t5"}', r"'t5' is no causal language model to this transformers"),
        (
            '{"model_type": "llama", "hidden_size": "wide"}',
            r"config\.json: (this transformers cannot read it|no model can be built from it): ",
        ),
        (
            '{"model_type": "llama", "num_attention_heads": 0}',
            r"config\.json: (this transformers cannot read it|no model can be built from it): ",
        ),
        (
            '{"model_type": "llama", "hidden_size": -8}',
            r"config\.json: (this transformers cannot read it|no model can be built from it): ",
        ),
    ],
)
def test_a_config_of_no_model_is_refused(folder, config, told):
    (folder / "config.json").write_text(config, encoding="utf-8")

    with pytest.raises(BadInput, match=told):
        serve(folder)


@pytest.mark.parametrize("index", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": []}}', "{}"])
def test_an_index_that_cannot_be_read_is_refused(folder, index):
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")

    with pytest.raises(BadInput, match=r"model\.safetensors\.index\.json cannot be read"):
        serve(folder)


@pytest.mark.parametrize("name", SMALL)
def test_every_architecture_that_is_described_is_served(workshop, name):
    serve(workshop.checkpoint(name))


def test_what_is_refused_is_bad_input(folder, conformance):
    rewrite(folder, lambda name, value: torch.full_like(value, math.nan))
    found = conformance(f"--model={folder}", "suites/weights", "suites/memory/test_kv_cache.py")

    assert found.code == 4
    assert not found.records
    assert "NaN or Inf in 20 of its tensors" in found.printed


@pytest.mark.parametrize(("words", "code"), [(600, 4), (300, 0)])
def test_a_tokenizer_with_words_beyond_the_model_is_refused(folder, conformance, words, code):
    """One with fewer is a model's own: vocabularies are padded. One of other words is for the perplexity to show."""
    known = Tokenizer(models.WordLevel({f"w{n}": n for n in range(words - 1)} | {"[UNK]": words - 1}, "[UNK]"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    known.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")

    found = conformance(f"--model={folder}", "suites/weights", "-k", "served and float32")

    assert found.code == code, found.printed
    told = "its tokenizer is another model's: it makes token 599 of plain text, and the model knows 512"
    assert (told in found.printed) is (code == 4)
