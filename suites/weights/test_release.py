"""The weights that are served are the ones that were released."""

import json

import pytest
import torch

from fixtures import release, release_config
from fixtures.configs import SMALL as CONFIGS
from fixtures.pretrained import pretrained

SMALL = pytest.mark.applies(real=(False,), saved=(True,), tier=("standard",))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.applies(real=(True,))
def test_served_weights_are_the_released_ones(case, dtype, device, model, judge):
    """WEIGHTS-1: every tensor in memory MUST equal the released file's, bit for bit after the declared conversion."""
    _compared(case, dtype, model, judge)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("made", ["as-drawn"])
@pytest.mark.applies(real=(False,))
def test_weights_of_each_architecture_are_the_released_ones(case, made, dtype, device, model, judge):
    """WEIGHTS-1: every tensor in memory MUST equal the released file's, bit for bit after the declared conversion."""
    _compared(case, dtype, model, judge)


@torch.no_grad()
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
@SMALL
def test_a_release_in_several_files_is_read_whole(case, dtype, device, model, tmp_path, judge):
    """WEIGHTS-1: every tensor in memory MUST equal the released file's, bit for bit after the declared conversion."""
    model.save_pretrained(tmp_path, max_shard_size="500KB")
    wanted, found = model.state_dict(), pretrained(tmp_path, device, "auto").state_dict()

    changed = [name for name, value in wanted.items() if name not in found or not release.same_bits(value, found[name])]

    judge.exactly("several files", len(release.weight_files(tmp_path)) > 1, True)
    judge.exactly("tensors that differ", " ".join(changed) or "none", "none")
    judge.exactly("other dtypes held", _other_dtypes(found, dtype), "none")


def _without_prefix(model, folder):
    """As a base model writes itself: `layers.0…` for `model.layers.0…`."""
    model.base_model.save_pretrained(folder)


def _pickled(model, folder):
    """As torch writes it, each tensor a part of one storage, as converters leave fused projections that they split."""
    model.config.save_pretrained(folder)
    held = model.base_model.state_dict(prefix=model.base_model_prefix + ".")
    parts = torch.cat([value.cpu().flatten() for value in held.values()]).split(
        [value.numel() for value in held.values()]
    )
    views = {name: part.view_as(value) for (name, value), part in zip(held.items(), parts, strict=True)}
    torch.save(views, folder / "pytorch_model.bin")


# How else a release may be written, but for a head, which a base model has not.
FORMS = {"without-prefix": _without_prefix, "pickled": _pickled}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("form", FORMS)
@SMALL
def test_a_release_in_another_form_is_read_whole(case, form, dtype, device, model, tmp_path, judge):
    """WEIGHTS-1: every tensor in memory MUST equal the released file's, bit for bit after the declared conversion."""
    FORMS[form](model, tmp_path)
    wanted, found = (m.base_model.state_dict() for m in (model, pretrained(tmp_path, device, dtype)))

    changed = [name for name, value in wanted.items() if not release.same_bits(value, found[name])]

    judge.exactly("tensors that differ", " ".join(changed) or "none", "none")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@SMALL
def test_older_words_ask_for_the_same_dtype(case, dtype, device, judge):
    """WEIGHTS-1: every tensor in memory MUST equal the released file's, bit for bit after the declared conversion."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(case.checkpoint(), torch_dtype=dtype).to(device)
    released = pretrained(case.checkpoint(), device).state_dict()
    wanted = {name: released[name].to(dtype) for name, _ in model.named_parameters()}

    changed = [name for name, held in model.named_parameters() if not release.same_bits(held, wanted[name])]

    judge.exactly("tensors that differ from the released ones, converted", " ".join(changed) or "none", "none")


@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(real=(True,))
def test_served_config_says_what_was_released(case, dtype, device, model, judge):
    """WEIGHTS-4: the config that a model is served with MUST say what was released: sizes, bases, epsilons, windows."""
    _declared(model.config, case.files(), judge)


@pytest.mark.parametrize("said", ["config.json"])
@SMALL
def test_config_of_each_architecture_says_what_was_released(case, said, judge):
    """WEIGHTS-4: the config that a model is served with MUST say what was released: sizes, bases, epsilons, windows."""
    from transformers import AutoConfig

    _declared(AutoConfig.from_pretrained(case.checkpoint()), case.checkpoint(), judge)


# As a release writes them, and as some do: with no window where the class has one.
UNWINDOWED = ("mistral", "mixtral", "phi3", "starcoder2")
WRITTEN = {name: {"model_type": kind, **declared} for name, (kind, declared, _) in CONFIGS.items()}
WRITTEN |= {f"{kind}-unwindowed": {"model_type": kind, "sliding_window": None} for kind in UNWINDOWED}


@pytest.mark.parametrize("written", WRITTEN)
def test_config_that_is_written_down_is_read(written, tmp_path, judge):
    """WEIGHTS-4: the config that a model is served with MUST say what was released: sizes, bases, epsilons, windows."""
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps(WRITTEN[written]), encoding="utf-8")

    _declared(AutoConfig.from_pretrained(tmp_path), tmp_path, judge)


def _declared(config, files, judge):
    said, held = release_config.said(files), release_config.held(config)
    judge.evidence["fields"] = sorted(set(said) & set(held))
    judge.exactly("fields that differ", json.dumps(release_config.different(said, held), default=str), "{}")


def _compared(case, dtype, model, judge):
    state = model.state_dict()
    released, different = set(), []
    for name, value in release.tensors(case.files(), model):
        held = state.get(name)
        released.add(name)
        if held is None or not release.same_bits(held.cpu(), value.to(held.dtype)):
            different.append(name)

    tied = {name for name in state if name not in released and release.is_tied(model, name)}
    judge.evidence["tensors"] = len(released)
    judge.exactly("tensors that differ", " ".join(different) or "none", "none")
    judge.exactly("tensors never released", " ".join(sorted(set(state) - released - tied)) or "none", "none")
    judge.exactly("other dtypes held", _other_dtypes(state, dtype), "none")


def _other_dtypes(state, dtype):
    odd = {str(t.dtype) for t in state.values() if t.is_floating_point() and t.dtype not in (dtype, torch.float32)}
    return " ".join(sorted(odd)) or "none"
