"""Contexts: windows on the same targets, reference models that are what their cards say, claims of a context."""

import datetime
import re
import subprocess
import sys
from hashlib import sha256

import pytest
import torch
from safetensors import safe_open

from fixtures import checkpoints, contexts, deployment, positions
from fixtures.checkpoints import FOLDER, TRAINED_MODELS
from fixtures.checkpoints.corpus import standard_library
from fixtures.judgement import Unverified
from fixtures.reach import AGAIN, DEPTHS, REACHES, Cell, Keys, Ladder, must_reach
from fixtures.statistics import binomial
from suites.meta.conftest import ROOT

LARGEST = 4_000_000


@pytest.mark.parametrize("name", TRAINED_MODELS)
def test_weights_are_those_that_their_card_describes(name):
    file, card = FOLDER / f"{name}.safetensors", checkpoints.facts(name)

    with safe_open(file, framework="pt") as stored:
        dtypes = {stored.get_tensor(key).dtype for key in stored.keys()}  # noqa: SIM118 - safe_open is no mapping

    assert sha256(file.read_bytes()).hexdigest() == card["sha256"]
    assert file.stat().st_size == card["bytes"] < LARGEST
    assert dtypes == {torch.bfloat16}
    assert card["data"]["bytes"] > 0
    assert len(card["by_position"][name]) == 6


def test_weights_that_no_card_describes_are_refused(tmp_path):
    for file in FOLDER.glob("rope.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "rope.safetensors").open("r+b") as stored:
        stored.seek(-1, 2)
        stored.write(b"\1")

    with pytest.raises(ValueError, match="not the file that its card describes"):
        checkpoints.load("rope", tmp_path)


def test_the_recipe_runs(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "fixtures.checkpoints.train", "--help"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "rope-yarn" in said
    corpus = standard_library()
    assert len(corpus.train) > 30 * len(corpus.held_out) / 2 > 0


@pytest.mark.parametrize("context", [128, 192, 256, 512])
def test_every_context_is_asked_about_the_same_targets(context):
    ids = torch.arange(600)

    asked = contexts.windows(ids, 512 + 1, 512 + 65, context)

    step = contexts.stride(64, context)
    assert asked.shape[1] == context + 1
    assert asked[:, -step:].flatten().tolist() == list(range(513, 577))
    assert context - step >= context // 2


def test_a_context_that_a_text_does_not_have_is_refused():
    with pytest.raises(ValueError, match="no 512 tokens of context"):
        contexts.windows(torch.arange(600), 300, 364, 512)


# Clopper and Pearson's limits of 95 % intervals, from tables: (0.025)^(1/n) and its like.
@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"), [(10, 10, 0.6915, 1.0), (0, 10, 0.0, 0.3085), (9, 10, 0.5550, 0.9975)]
)
def test_shares_have_exact_intervals(hits, trials, low, high):
    found = binomial(hits, trials)

    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def loss(nats):
    return torch.full((4, 8), nats) + torch.arange(4.0)[:, None] / 1000


def test_a_ladder_is_held_against_the_trained_length_beyond_it_and_the_shortest_below():
    found = Ladder({128: loss(2.0), 512: loss(1.9), 1024: loss(1.9), 1536: loss(2.9)}, {})

    ratios = {length: round(ratio.estimate, 3) for length, ratio in found.grown(1536, 1024)}
    assert ratios == {512: 0.905, 1024: 0.905, 1536: 2.718}
    assert [length for length, _ in found.grown(1024, 1024)] == [512, 1024]


def test_pass_keys_are_judged_by_length_and_where_there_are_enough_by_depth():
    few = Keys({Cell(256, d): [True, True] for d in DEPTHS})
    many = Keys({Cell(n, d): [d != 0.5] * 4 for n in (256, 512, 1024) for d in DEPTHS})

    assert list(few.groups(256)) == ["at 256 tokens"]
    assert many.share(many.groups(1024)["at depth 0.5"]).high < 0.5
    assert many.table()["512"] == {str(d): "0 of 4" if d == 0.5 else "4 of 4" for d in DEPTHS}


def found_with(rates, keys, draw):
    """What a model finds that finds a key in each of these cells with such a probability."""
    return Keys({cell: (torch.rand(keys, generator=draw) < rate).tolist() for cell, rate in rates.items()})


# SmolLM2-135M found 2 of 8 keys at 0.7 of 8,192 tokens on an H200, all elsewhere. A depth that is lost at two of three
# lengths is lost; whoever guesses is not let through more often than two looks of 2.5 % allow.
@pytest.mark.parametrize(("weak", "passes"), [((1, 1, 0.25), (1.0, 1.0)), ((1, 0, 0), (0, 0)), ((0.5,) * 3, (0, 0.05))])
def test_what_a_first_sample_of_pass_keys_leaves_open_a_larger_one_settles(weak, passes):
    rates = {Cell(n, d): 1.0 for n in (1024, 4096, 8192) for d in DEPTHS}
    rates |= {Cell(n, 0.7): rate for n, rate in zip((1024, 4096, 8192), weak, strict=True)}
    outcomes, larger = [], 0

    for seed in range(400):
        draw = torch.Generator().manual_seed(seed)
        found = found_with(rates, 4, draw)
        cells = found.groups(8192)["at depth 0.7"]
        share, asked = found.settled(cells, 0.5, lambda cells, draw=draw: found_with(rates, 4 * AGAIN, draw))
        outcomes.append(share.against(ideal=1, low=0.5, high=None)[0])
        larger += asked is not found

    assert passes[0] <= outcomes.count("passed") / len(outcomes) <= passes[1]
    assert larger > 0


@pytest.mark.parametrize(("where", "here"), [("cpu", ("cpu",)), ("cuda", ("cpu", "cuda"))])
def test_a_claimed_context_that_is_not_reached_is_unverified(where, here):
    with pytest.raises(Unverified, match=r"a context of 32,768 tokens is claimed, and on .* 512 were tried"):
        must_reach((128, 512), 32768, where, here)

    must_reach((128, 32768), 32768, where, here)
    must_reach((128, 512), None, where, here)


def test_what_a_gpu_tries_is_not_asked_of_the_cpu_beside_it():
    must_reach((128, 512), 32768, "cpu", ("cpu", "cuda"))


def test_a_long_reach_goes_to_twice_the_trained_length_and_to_the_claim():
    long = next(reach for reach in REACHES if reach.name == "long")

    assert long.rungs(long.lengths, 8192, 20000, None) == [128, 1024, 4096, 8192, 12288, 16384, 20000]
    assert long.rungs(long.lengths, 1024, None, 1024) == [128, 512, 1024]


@pytest.mark.parametrize("reach", REACHES[:2], ids=str)
@pytest.mark.parametrize(("trained", "claimed"), [(300, None), (8192, 300)])
def test_what_has_to_hold_is_tried_on_a_cpu_too(reach, trained, claimed):
    lengths = reach.rungs(reach.lengths, trained, claimed, None)

    assert 300 in lengths
    assert 8192 not in lengths


def test_contexts_that_are_too_short_to_be_compared_are_unverified():
    short = REACHES[0]

    with pytest.raises(Unverified, match="at most 40 tokens is too short: 64 are asked about"):
        short.rungs(short.lengths, 40, None, 40)
    with pytest.raises(Unverified, match="up to 100 tokens there are no two contexts to compare: 100 is the first"):
        Ladder({100: loss(2.0), 128: loss(2.0)}, {}).grown(100, 100)
    with pytest.raises(Unverified, match="up to 100 tokens fewer than 10 pass keys"):
        Keys({Cell(256, depth): [True, True] for depth in DEPTHS}).groups(100)


def read(tmp_path, claims):
    toml = tmp_path / "deployment.toml"
    toml.write_text(f"[claims]\n{claims}\n", encoding="utf-8")
    return deployment.read(toml, datetime.date(2026, 11, 24))


def test_a_context_can_be_claimed(tmp_path):
    found = read(tmp_path, "context = 32768\nattention = ['sdpa-math']")

    assert found.context == 32768
    assert found.claims == {"attention": ("sdpa-math",)}


@pytest.mark.parametrize("said", ["context = 12", "context = true", "context = '32k'", "contexts = 4096"])
def test_a_context_that_is_no_number_of_tokens_is_refused(tmp_path, said):
    with pytest.raises(deployment.BadInput, match=r"claims\.context"):
        read(tmp_path, said)


def test_a_rope_type_without_a_formula_is_said(monkeypatch):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert positions.without_formula() == []
    monkeypatch.setitem(ROPE_INIT_FUNCTIONS, "spiral", None)
    assert positions.without_formula() == ["spiral"]


def test_the_report_says_which_rope_type_has_no_formula(conformance, monkeypatch):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    monkeypatch.setitem(ROPE_INIT_FUNCTIONS, "spiral", None)
    found = conformance("suites/positions/test_tables.py", "-k", "rope-default and 1000")

    assert re.search("rope_type 'spiral' of this transformers has no formula here", found.printed)
