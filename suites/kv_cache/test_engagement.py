"""A cache is used: what was computed once is not computed again."""

import pytest
import torch

from fixtures.decoding import handing, padded_left
from fixtures.generation import generated
from fixtures.meters import embedded, updates
from fixtures.models import from_folder
from fixtures.paged import PAGE, TOKENS_AT_ONCE, Wish
from fixtures.questions import Traffic, Usage

PROMPT, COUNT, NEXT = 32, 7, 5  # groups of what is rounded are full
ANY = [Usage("any", needs=frozenset())]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("usage", ANY, ids=str)
@pytest.mark.applies(real=(False,))
def test_each_step_runs_one_token(case, kv_cache, dtype, usage, device, model, make_ids, judge):
    """KV-16: after the prompt each step MUST run one token, and write it once into each layer of the cache."""
    cache = kv_cache.make(model.config, 2, PROMPT + NEXT + 2 * COUNT)
    longer, shorter = make_ids(batch=2, length=PROMPT)
    texts, real = padded_left([longer, shorter[:20]])
    steps = [1] * (COUNT - 1)
    wanted = [PROMPT, *steps, 1 + NEXT, *steps]  # the last token of an answer goes in with the next turn
    layers = range(model.config.num_hidden_layers)

    with embedded(model) as lengths, updates(cache) as written:
        for new in (0, NEXT):
            texts = torch.cat([texts, make_ids(batch=2, length=new)], 1)
            real = torch.cat([real, torch.ones_like(texts[:, real.shape[1] :])], 1)
            texts = torch.cat([texts, generated(model, texts, COUNT, real, **handing(model, cache))], 1)

    judge.exactly("tokens that each call ran", str(lengths), str(wanted))
    judge.exactly("layers and tokens written", str(written), str([(layer, n) for n in wanted for layer in layers]))
    judge.exactly("tokens in the cache", int(cache.get_seq_length()), sum(wanted))


# What is asked for, and how many tokens a step may run: with drafts, those and one.
WAYS = {"bare": ({}, 1), "beams": ({"num_beams": 3}, 1), "looked-up": ({"prompt_lookup_num_tokens": 3}, 4)}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.applies(real=(False,), tier=("standard",), saved=(True,))
def test_every_way_runs_what_is_new(case, dtype, way, device, make_ids, judge):
    """KV-16: after the prompt each step MUST run one token, and write it once into each layer of the cache."""
    model, part, (how, most) = from_folder(case.checkpoint(), dtype, device), make_ids(1, PROMPT // 4), WAYS[way]
    ids = part.repeat(1, 4)  # so that there is something to look up

    with embedded(model) as lengths:
        ends = {"eos_token_id": -1, "pad_token_id": 0}
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT, do_sample=False, **ends, **how)

    judge.exactly("tokens beside the prompt in the first step", max(0, lengths[0] - PROMPT) < most, True)
    judge.exactly(f"steps that ran more than {most} tokens", sum(n > most for n in lengths[1:]), 0)
    judge.exactly("steps", 1 < len(lengths) <= COUNT, True, detail=f"it took {len(lengths)}")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("size", [5], ids=["chunks-5"])
@pytest.mark.applies(real=(False,), tier=("standard",), saved=(True,), architecture=("llama", "gpt_bigcode"))
def test_a_prompt_in_chunks_runs_once(case, dtype, size, device, model, make_ids, judge):
    """KV-16: after the prompt each step MUST run one token, and write it once into each layer of the cache."""
    with embedded(model) as lengths:
        generated(model, make_ids(1, PROMPT), COUNT, prefill_chunk_size=size)

    judge.exactly("tokens that were run", sum(lengths), PROMPT + COUNT - 1, detail=f"call by call: {lengths}")
    judge.exactly("tokens of the longest call", max(lengths), size)


SHARED = [Traffic("shared", lengths=(300, 290), count=12, alike=270, needs=frozenset({"paged", "managed"}))]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("traffic", SHARED, ids=str)
@pytest.mark.applies(architecture=("llama",), real=(False,), tier=("standard",))
@pytest.mark.optional("paged attention")
def test_requests_share_steps_and_pages(case, attention, dtype, traffic, device, model, make_ids, judge):
    """KV-16: after the prompt each step MUST run one token, and write it once into each layer of the cache."""
    texts = make_ids(batch=len(traffic.lengths), length=max(traffic.lengths))
    texts[:, : traffic.alike] = texts[0, : traffic.alike]
    wishes = [Wish(t[:n].tolist(), traffic.count, 1.0) for t, n in zip(texts, traffic.lengths, strict=True)]

    with embedded(model) as lengths:
        told = attention.manage(model, wishes)

    judge.exactly("tokens generated", sum(len(one.tokens) for one in told), traffic.count * len(wishes), unit="tokens")
    prompts = sum(traffic.lengths) - traffic.alike // PAGE * PAGE
    most = -(-prompts // TOKENS_AT_ONCE) + traffic.count - 1
    wanted = prompts + (traffic.count - 1) * len(wishes)
    judge.exactly(
        "tokens that the model ran", sum(lengths), wanted, detail="a page that prompts share is computed once"
    )
    judge.exactly(f"{most} steps suffice", len(lengths) <= most, True, detail=f"it took {len(lengths)}")
