"""What `generate` answers on a cache is what the logits of full recomputation rank first."""

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import current_thread, main_thread

import pytest
import torch

from fixtures.decoding import handing, padded_left
from fixtures.generation import Ending, Stream, drafting, generated, loop, piped, saying, scored, until, using
from fixtures.models import VOCABULARY
from fixtures.questions import Usage
from fixtures.tokenizing import ANSWER, ENDED, TURN, numbered

DTYPES = pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
# Long enough that windows are left behind, and no token of a trained model is a tie by construction.
PROMPT, COUNT = 21, 10
WAYS = {
    "cached": lambda model, kv_cache, prompt: generated(model, prompt, COUNT, **using(model, kv_cache, PROMPT + COUNT)),
    "uncached": lambda model, kv_cache, prompt: generated(model, prompt, COUNT, use_cache=False),
    "by-hand": lambda model, kv_cache, prompt: loop(
        model, kv_cache.make(model.config, 1, PROMPT + COUNT), prompt, COUNT
    ),
}


@torch.no_grad()
@DTYPES
def test_greedy_tokens_are_those_ranked_first(case, kv_cache, dtype, device, model, make_ids, truth, judge):
    """KV-14: greedy tokens, with a cache, without one and by hand, MUST be those that golden logits rank first."""
    prompt = make_ids(batch=1, length=PROMPT)

    answers = {way: ask(model, kv_cache, prompt)[0] for way, ask in WAYS.items()}

    for way, tokens in answers.items():
        judge.exactly(f"{way}: tokens", len(tokens), COUNT)
        _judge_answer(judge, truth, model, prompt[0], tokens, dtype, way)


CORE = pytest.mark.applies(tier=("standard",))


@torch.no_grad()
@DTYPES
@pytest.mark.applies(architecture=("llama",), real=(False,), tier=("standard",))
def test_a_prompt_is_read_from_its_first_token(case, dtype, device, model, make_ids, judge):
    """KV-14: greedy tokens, with a cache, without one and by hand, MUST be those that golden logits rank first."""
    prompt = make_ids(batch=1, length=model.config.max_position_embeddings - 1)
    other = torch.cat([(prompt[:, :1] + 1) % VOCABULARY, prompt[:, 1:]], 1)

    said = [scored(model, text, 1).logits for text in (prompt, other)]

    judge.exactly("logits after a full context change with its first token", not torch.equal(*said), True)


# A prompt as long as a step, one from which 128 tokens are left behind, one that is longer, and one of which half is
# beyond 256, up to which bfloat16 counts.
AFTER = {"from-1": 1, "from-125": 125, "from-131": 131, "from-400": 400}
LONG = [(length, torch.bfloat16 if length > 250 else torch.float32) for length in AFTER.values()]


@torch.no_grad()
@pytest.mark.parametrize(
    ("length", "dtype"), LONG, ids=[f"{name}-{str(d)[6:]}" for name, (_, d) in zip(AFTER, LONG, strict=True)]
)
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_greedy_tokens_after_any_prompt(case, kv_cache, dtype, length, device, model, make_ids, truth, judge):
    """KV-14: greedy tokens, with a cache, without one and by hand, MUST be those that golden logits rank first."""
    prompt, stream, there = make_ids(batch=1, length=length), Stream(), []

    with model.register_forward_pre_hook(lambda *_: there.append(len(stream.tokens))):
        tokens = generated(model, prompt, COUNT, streamer=stream, **using(model, kv_cache, length + COUNT))

    # A token may be on its way while the next is computed, so that nobody has to wait for it.
    late = [step for step, streamed in enumerate(there) if streamed < length + step - 1]
    judge.exactly("steps at which an older token than the last was not yet streamed", str(late), "[]")
    judge.exactly("tokens streamed", str(stream.tokens), str([*prompt[0].tolist(), *tokens[0].tolist()]))
    judge.exactly("ends of the stream", stream.ends, 1)
    _judge_answer(judge, truth, model, prompt[0], tokens[0], dtype, f"after {length}")


# Longer than buffers of 64 and of 128 tokens.
@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("length", [140], ids=["140"])
@pytest.mark.applies(real=(False,), tier=("standard",), architecture=("llama",))
def test_greedy_tokens_of_a_long_answer(case, dtype, length, device, model, make_ids, truth, judge):
    """KV-14: greedy tokens, with a cache, without one and by hand, MUST be those that golden logits rank first."""
    prompt = make_ids(batch=1, length=PROMPT)

    tokens = generated(model, prompt, length)[0]

    judge.exactly("tokens", len(tokens), length)
    _judge_answer(judge, truth, model, prompt[0], tokens, dtype, "the prompt")


@torch.no_grad()
@DTYPES
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_an_answer_ends_with_its_end(case, kv_cache, dtype, device, model, make_ids, judge):
    """KV-24: an answer MUST end with the token that ends it, and other rows MUST go on as they do without an end."""
    longer, shorter = make_ids(batch=2, length=PROMPT)
    ids, real = padded_left([longer, shorter[:14]])

    def ask(**how):
        return generated(model, ids, COUNT, real, **how, **using(model, kv_cache, PROMPT + COUNT, rows=2)).tolist()

    free = ask()
    pad = min(set(range(2 * COUNT + 1)).difference(*free))  # no token of the answers, so that a cut shows
    last = free[0][3]
    # Chat models have several, the end of a turn and the end of text; one that ended a turn before is in the prompt.
    for what, ends in {"one end": [last], "several ends": [int(longer[5]), free[1][6], last]}.items():
        ended = ask(eos_token_id=ends, pad_token_id=pad)
        wanted = [until(row, ends) for row in free]
        length = max(map(len, wanted))
        judge.exactly(f"{what}: answers", str(ended), str([row + [pad] * (length - len(row)) for row in wanted]))
        judge.exactly(f"{what}: an answer is cut", str(ended[0] == free[0]), "False")


# What a caller's criteria say of each row, a length that counts the prompt, and two rows of which the first ends early.
CUT = {
    "criterion": (lambda: {"stopping_criteria": Ending([PROMPT + 3, PROMPT + 6]).listed()}, [3, 6]),
    "max-length": (lambda: {"max_new_tokens": None, "max_length": PROMPT + 4}, [4, 4]),
    "both": (lambda: {"stopping_criteria": Ending([PROMPT + 3, torch.inf]).listed(), "max_new_tokens": 5}, [3, 5]),
}


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("cut", CUT)
@pytest.mark.applies(architecture=("llama",), real=(False,), tier=("standard",))
def test_an_answer_ends_as_its_request_says(case, dtype, cut, device, model, make_ids, judge):
    """KV-24: an answer MUST end with the token that ends it, and other rows MUST go on as they do without an end."""
    ask, lengths = CUT[cut]
    longer, shorter = make_ids(batch=2, length=PROMPT)
    ids, real = padded_left([longer, shorter[:14]])
    free = generated(model, ids, COUNT, real).tolist()
    pad = min(set(range(2 * COUNT + 1)).difference(*free))

    found = generated(model, ids, COUNT, real, pad_token_id=pad, **ask()).tolist()

    wanted = [row[:length] + [pad] * (max(lengths) - length) for row, length in zip(free, lengths, strict=True)]
    judge.exactly("answers", str(found), str(wanted), detail=f"those of {COUNT} tokens are {free}")


# Seconds, and how long a caller's criterion takes at each step: however fast the rest is, they are not enough for all.
TIME, STEP = 0.12, 0.05


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("seconds", [TIME])
@pytest.mark.applies(architecture=("llama",), real=(False,), tier=("standard",))
def test_an_answer_ends_in_its_time(case, dtype, seconds, device, model, make_ids, judge):
    """KV-24: an answer MUST end with the token that ends it, and other rows MUST go on as they do without an end."""
    prompt = make_ids(batch=1, length=PROMPT)
    free = generated(model, prompt, COUNT)[0].tolist()

    slow = Ending([torch.inf], wait=STEP).listed()
    found = generated(model, prompt, COUNT, max_time=seconds, stopping_criteria=slow)[0].tolist()

    judge.between("tokens", len(found), 1, COUNT - 1, detail=f"each takes {STEP} s at least")
    judge.exactly("answer", str(found), str(free[: len(found)]))


# A stop string begins and ends inside a token or inside of two, and its characters may be of several; it stands in the
# prompts, where it ends nothing, and the last answer has its beginning alone.
STOPS = {
    "letters": (
        ["ernation", "ce wa"],
        ["The international conference was.", "Conference was:"],
        [
            "An international affair to us, then",
            "The conference was held over there",
            "Internal conference rooms, we know",
        ],
    ),
    "characters": (["𓂀", "t is"], ["𓂀 it is.", "In 𓂀:"], ["𓂀 it is, it was", "𓂁 it is, it was"]),
}


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("stops", STOPS)
@pytest.mark.applies(real=(True,))
def test_an_answer_ends_with_a_stop_string(case, dtype, stops, device, model, tokenizer, judge):
    """KV-24: an answer MUST end with the token that ends it, and other rows MUST go on as they do without an end."""
    strings, before, said = STOPS[stops]
    spelled = [tokenizer(text, add_special_tokens=False).input_ids for text in said]
    count = min(map(len, spelled))
    prompts = [tokenizer(text, return_tensors="pt").input_ids[0].to(device) for text in before]
    ids, real = padded_left([*prompts, *prompts][: len(said)])
    wanted = [answer[: _stopped(tokenizer, answer[:count], strings)] for answer in spelled]

    forced = saying(spelled, ids.shape[1])
    found = generated(model, ids, count, real, stop_strings=strings, tokenizer=tokenizer, **forced).tolist()

    judge.exactly("answers that a stop string ends", sum(len(tokens) < count for tokens in wanted), len(strings))
    length = max(map(len, wanted))
    padded = [tokens + [0] * (length - len(tokens)) for tokens in wanted]
    due = f"stop strings {strings}; due are {[tokenizer.decode(tokens) for tokens in wanted]}"
    judge.exactly("answers", str(found), str(padded), detail=due)


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("stop", ["ernation"])
@pytest.mark.applies(real=(True,), tier=("standard",))
def test_an_end_beside_a_stop_string(case, dtype, stop, device, model, tokenizer, judge):
    """KV-24: an answer MUST end with the token that ends it, and other rows MUST go on as they do without an end."""
    said = ["An international affair", "The tale goes on"]
    spelled = [tokenizer(text, add_special_tokens=False).input_ids for text in said]
    prompts = tokenizer(["Once upon a time"] * len(said), return_tensors="pt").input_ids.to(device)
    until_stop, end = _stopped(tokenizer, spelled[0], [stop]), spelled[1][1]
    wanted = [spelled[0][:until_stop], until(spelled[1], [end])]

    forced = saying(spelled, prompts.shape[1])
    how = {"stop_strings": stop, "tokenizer": tokenizer, "eos_token_id": end}
    found = generated(model, prompts, min(map(len, spelled)), **how, **forced).tolist()

    padded = [tokens + [0] * (max(map(len, wanted)) - len(tokens)) for tokens in wanted]
    judge.exactly("answers", str(found), str(padded), detail=f"the stop string is {stop!r}, the end token {end}")


def _stopped(tokenizer, answer, strings):
    """How many tokens of an answer there are when a stop string is complete in its text, or all of them."""
    texts = (tokenizer.decode(answer[:n], clean_up_tokenization_spaces=False) for n in range(1, len(answer) + 1))
    return next((n for n, text in enumerate(texts, 1) if any(s in text for s in strings)), len(answer))


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("unmasked", ["padded", "ends-inside"])
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_a_request_without_a_mask(case, dtype, unmasked, device, model, make_ids, truth, judge):
    """KV-14: greedy tokens, with a cache, without one and by hand, MUST be those that golden logits rank first."""
    longer, shorter = make_ids(batch=2, length=PROMPT)
    # Padding is told by its token, unless that also ends texts: then it is part of a chat.
    pad = min(set(range(2 * PROMPT + 1)).difference(longer.tolist(), shorter.tolist()))
    padded, real = padded_left([longer, shorter[:14]])
    texts, ends = {
        "padded": (padded.masked_fill(real == 0, pad), -1),
        "ends-inside": (longer[None].masked_fill(torch.arange(PROMPT, device=device) == 7, pad), pad),
    }[unmasked]

    found = generated(model, texts, COUNT, attention_mask=None, pad_token_id=pad, eos_token_id=ends)

    for text, answer in zip(texts, found, strict=True):
        prompt, length = text[text != pad] if ends != pad else text, len(until(answer.tolist(), [ends]))
        _judge_answer(judge, truth, model, prompt, answer[:length], dtype, f"a text of {len(prompt)}")


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("given", ["embeddings"])
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_prompts_of_embeddings(case, dtype, given, device, model, make_ids, truth, judge):
    """KV-14: greedy tokens, with a cache, without one and by hand, MUST be those that golden logits rank first."""
    longer, shorter = make_ids(batch=2, length=PROMPT)
    prompts = [longer, shorter[:14]]
    padded, real = padded_left(prompts)

    embedded = model.get_input_embeddings()(padded)
    found = generated(model, padded, COUNT, real, inputs_embeds=embedded)
    alone = generated(model, padded[:, :0], COUNT, real, inputs_embeds=embedded)

    judge.exactly("answers to embeddings alone", str(alone.tolist()), str(found.tolist()))
    for prompt, tokens in zip(prompts, found, strict=True):
        _judge_answer(judge, truth, model, prompt, tokens, dtype, f"a prompt of {len(prompt)}")


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("asked", ["texts", "chats"])
@pytest.mark.applies(real=(False,), tier=("standard",), architecture=("llama",))
def test_a_pipeline_of_a_batch(case, dtype, asked, device, model, make_ids, truth, judge):
    """KV-14: greedy tokens, with a cache, without one and by hand, MUST be those that golden logits rank first."""
    longer, shorter = make_ids(batch=2, length=PROMPT).tolist()
    prompts = [longer, shorter[:14]]
    texts = [" ".join(map(str, prompt)) for prompt in prompts]
    chats = [[{"role": "user", "content": text}] for text in texts]
    written = {"texts": prompts, "chats": [[TURN, *prompt, ENDED, ANSWER] for prompt in prompts]}[asked]

    how = {"max_new_tokens": COUNT, "do_sample": False, "eos_token_id": -1}
    found = piped(model, numbered(VOCABULARY), {"texts": texts, "chats": chats}[asked], **how)

    for prompt, whole in zip(written, torch.tensor(found, device=device), strict=True):
        start = torch.tensor(prompt, device=device)
        _judge_answer(judge, truth, model, start, whole[-COUNT:], dtype, f"a prompt of {len(prompt)}")


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("calls", [(0, 4, 9)], ids=["prompt-and-steps"])
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_a_request_in_the_midst_of_another(case, dtype, calls, device, model, make_ids, truth, judge):
    """KV-14: greedy tokens, with a cache, without one and by hand, MUST be those that golden logits rank first."""
    longer, shorter = make_ids(batch=2, length=PROMPT)
    prompts, answers, seen = [longer, *[shorter[:4]] * len(calls)], [], count()
    layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)

    def another(module, given):
        """Before the first layer or the last, as threads of a server may take turns: all of another request."""
        if current_thread() is main_thread() and next(seen) in calls:
            with ThreadPoolExecutor(1) as other:
                answers.append(other.submit(generated, model, prompts[1][None], COUNT, **own).result()[0])

    # It asks for what the outer one does not: half of the vocabulary alone.
    own = {"suppress_tokens": list(range(0, VOCABULARY, 2))}
    with layers[0].register_forward_pre_hook(another), layers[-1].register_forward_pre_hook(another):
        answers.insert(0, generated(model, longer[None], COUNT)[0])

    names = "the outer one", *(f"one within it, at call {n} of a layer" for n in calls)
    for what, prompt, tokens, asked in zip(names, prompts, answers, [{}, *[own] * len(calls)], strict=True):
        _judge_answer(judge, truth, model, prompt, tokens, dtype, what, **asked)


SPECULATE = frozenset({"exact", "speculate"})
DRAFTS = [
    pytest.param(Usage("prompt-lookup", needs=SPECULATE), marks=CORE),
    # It drafts itself, and is always right; and a model that knows nothing drafts, and is nearly always wrong.
    pytest.param(Usage("own-draft", needs=SPECULATE), marks=CORE),
    Usage("poor-draft", needs=SPECULATE),
]
# A step takes a draft that is right, and adds a token of its own; rounding may refuse one.
MOST = {"prompt-lookup": COUNT, "own-draft": COUNT // 2 + 1, "poor-draft": COUNT}


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("drafts", DRAFTS, ids=str)
@pytest.mark.applies(real=(False,))
def test_speculation_gives_greedy_tokens(case, kv_cache, dtype, drafts, device, model, make_ids, truth, judge):
    """KV-15: speculation MUST give the tokens that golden logits rank first, and take drafts that are right."""
    seven = make_ids(batch=1, length=7)
    prompt = torch.cat([seven] * 4, 1)  # repeated, so that there is something to look up
    cache = handing(model, kv_cache.make(model.config, 1, 28 + COUNT))

    drafted, asked, stream = drafting(drafts.name, model), [], Stream()
    with model.register_forward_hook(lambda *_: asked.append(1)):
        tokens = generated(model, prompt, COUNT, streamer=stream, **drafted, **cache)[0]

    # A draft may be longer than what is left of an answer.
    caches = {n: handing(model, kv_cache.make(model.config, 1, 28 + n)) for n in (2, 3, 4)}
    short = {n: generated(model, prompt, n, **drafting(drafts.name, model), **caches[n]).shape[1] for n in caches}

    judge.exactly("tokens", str([len(tokens), *short.values()]), str([COUNT, *short]))
    judge.exactly("tokens streamed", str(stream.tokens), str([*prompt[0].tolist(), *tokens.tolist()]))
    judge.exactly(
        f"{MOST[drafts.name]} steps suffice", len(asked) <= MOST[drafts.name], True, detail=f"it took {len(asked)}"
    )
    _judge_answer(judge, truth, model, prompt[0], tokens, dtype, drafts.name)


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("drafts", ["poor-draft"])
@pytest.mark.applies(real=(False,), tier=("standard",), architecture=("llama",))
def test_drafts_are_what_the_drafter_says(case, dtype, drafts, device, model, make_ids, decoded, judge):
    """KV-15: speculation MUST give the tokens that golden logits rank first, and take drafts that are right."""
    prompt, drafted = make_ids(batch=1, length=PROMPT), drafting(drafts, model)
    drafter = drafted["assistant_model"]
    drafter.generation_config.update(num_assistant_tokens=4, assistant_confidence_threshold=0.0)

    def ask():
        """What the model ran at each step, which ends with drafts, and the text that was there by then."""
        stream, seen = Stream(), []
        with model.get_input_embeddings().register_forward_pre_hook(
            lambda _, given: seen.append((stream.tokens.copy(), given[0][0].tolist()))
        ):
            generated(model, prompt, COUNT, streamer=stream, **drafted)
        return seen

    steps, again = ask(), ask()

    judge.exactly("what a second request runs", str(again), str(steps))
    said, logits = [], {torch.float64: [], dtype: []}
    for text, (_, *proposed) in steps[1:]:
        said += proposed
        for d, rows in logits.items():
            ids = torch.tensor([text + proposed], device=device)
            rows.append(decoded(drafter, ids, d)[0, len(text) - 1 : -1])
    golden, reference = map(torch.cat, logits.values())
    judge.ranked_first(said, reference, golden, what="drafts")


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("drafts", [Usage(name, needs=SPECULATE) for name in ("own-draft", "poor-draft")], ids=str)
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_a_drafted_answer_ends_with_its_end(case, kv_cache, dtype, drafts, device, model, make_ids, judge):
    """KV-24: an answer MUST end with the token that ends it, and other rows MUST go on as they do without an end."""
    prompt = make_ids(batch=1, length=PROMPT)

    def ask(**how):
        cache = kv_cache.make(model.config, 1, PROMPT + COUNT)
        more = {**drafting(drafts.name, model), **handing(model, cache), **how}
        return generated(model, prompt, COUNT, **more)[0].tolist(), int(cache.get_seq_length())

    free, _ = ask()
    ended, cached = ask(eos_token_id=free[3])

    # Not held to be `free`, cut: tokens that are checked in other numbers at once are rounded otherwise.
    judge.exactly("ends before the last token", ended[:-1].count(free[3]), 0)
    told = "the next turn goes on from what is cached: a draft behind the end is to be gone"
    judge.exactly("tokens in the cache", cached, PROMPT + len(ended) - 1, detail=told)


def _judge_answer(judge, truth, model, prompt, tokens, dtype, what, suppress_tokens=()):
    """What follows a prompt `(n,)` is, token by token, what golden logits of the whole rank first of what may come."""
    whole = torch.cat([prompt, tokens])[None]
    golden, reference = (truth(model, whole, d)[0, len(prompt) - 1 : -1] for d in (torch.float64, dtype))
    left = sorted(set(range(golden.shape[-1])).difference(suppress_tokens))
    judge.exactly(f"{what}: tokens that were not to come", len(set(tokens.tolist()).difference(left)), 0)
    said = [left.index(token) for token in tokens.tolist() if token in left]
    kept = [at for at, token in enumerate(tokens.tolist()) if token in left]
    judge.ranked_first(said, reference[kept][:, left], golden[kept][:, left], what=what)
