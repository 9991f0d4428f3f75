"""A whole model on a backend computes the logits that its weights and its paper say."""

import pytest
import torch

from fixtures.decoding import after_padding
from fixtures.in_model import switched
from fixtures.judgement import ROUNDINGS
from fixtures.meters import kernels
from fixtures.oracles.architectures import experts
from fixtures.questions import Padding
from fixtures.tokens import said


@torch.no_grad()
def test_logits_are_as_accurate_as_eager(case, attention, dtype, device, own_kernels, model, make_ids, truth, judge):
    """ATTN-2: a model's logits under a backend MUST be as close to float64 as plain eager attention's in that dtype."""
    ids = make_ids(batch=2, length=129)
    golden = truth(model, ids, torch.float64)
    reference = truth(model, ids, dtype)
    with attention.in_model(model) as called, kernels(device, own_kernels) as ran:
        candidate = model(ids, use_cache=False).logits

    judge.ran("kernels", own_kernels, ran)
    judge.ran("calls", () if called is None else [attention.name], called or ())
    judge(candidate, reference, golden)
    judge.evidence |= said(case, candidate, ids)


LENGTH, KEPT = 65, [0, 7, 40, 64]


def _packed(model, ids):
    """Both rows as one: positions that begin again say where the second begins."""
    positions = torch.arange(ids.shape[1], device=ids.device).repeat(len(ids))[None]
    return model(ids.reshape(1, -1), position_ids=positions, use_cache=False).logits.view(*ids.shape, -1)


def _from_hidden(model, ids):
    """What a server that hands out the last hidden states makes of them."""
    return model.get_output_embeddings()(model(ids, output_hidden_states=True, use_cache=False).hidden_states[-1])


def _from_embeddings(model, ids):
    """What is handed over stays a caller's own: it is handed over twice."""
    embeddings = model.get_input_embeddings()(ids)
    model(inputs_embeds=embeddings, use_cache=False)
    return model(inputs_embeds=embeddings, use_cache=False).logits


# How logits are asked for, and of which positions; kept and packed where every transformers here can.
LLAMAS = pytest.mark.applies(architecture=("llama", "mistral"))
WAYS = {
    "embeddings": _from_embeddings,
    "hidden-states": _from_hidden,
    "kept": lambda model, ids: model(ids, use_cache=False, logits_to_keep=torch.tensor(KEPT, device=ids.device)).logits,
    "packed": _packed,
}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize(
    "way", ["embeddings", "hidden-states", pytest.param("kept", marks=LLAMAS), pytest.param("packed", marks=LLAMAS)]
)
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_logits_are_the_same_in_every_way_of_asking(case, way, dtype, device, model, make_ids, truth, judge):
    """ATTN-2: a model's logits under a backend MUST be as close to float64 as plain eager attention's in that dtype."""
    ids, at = make_ids(batch=2, length=LENGTH), KEPT if way == "kept" else slice(None)

    candidate = WAYS[way](model, ids)

    judge(candidate, *(truth(model, ids, d)[:, at] for d in (dtype, torch.float64)))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_states_of_each_layer_are_as_accurate_as_eager(case, dtype, device, model, make_ids, inside, judge):
    """ATTN-2: a model's logits under a backend MUST be as close to float64 as plain eager attention's in that dtype."""
    ids = make_ids(batch=2, length=LENGTH)
    golden, reference = (inside(model, ids, d) for d in (torch.float64, dtype))

    with switched(model, "eager"):
        found = model(ids, output_hidden_states=True, output_attentions=True, use_cache=False)

    for what in ("hidden", "weights"):
        wanted, plain = getattr(golden, what), getattr(reference, what)
        said = found.hidden_states if what == "hidden" else found.attentions
        judge.exactly(f"{what}: tensors", len(said), len(wanted))
        for layer, (candidate, near, true) in enumerate(zip(said, plain, wanted, strict=False)):
            judge(candidate, near, true, what=f"{what} {layer},")


LABELLED = [5, 23, 41]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(real=(False,), tier=("standard",))
def test_loss_is_of_the_tokens_that_have_labels(case, dtype, device, model, make_ids, truth, judge):
    """ATTN-2: a model's logits under a backend MUST be as close to float64 as plain eager attention's in that dtype."""
    ids = make_ids(batch=2, length=LENGTH)

    def loss(*labelled):
        """Of the text, where all tokens but these are left out."""
        labels = torch.full_like(ids, -100)
        for row, at in labelled:
            labels[row, at] = ids[row, at]
        return model(ids, labels=labels, use_cache=False).loss

    places = [(row, at) for row in range(2) for at in LABELLED[row:]]
    each, together = [loss(place) for place in places], loss(*places)

    rows, at = (torch.tensor(numbers, device=device) for numbers in zip(*places, strict=True))
    golden, reference = (truth(model, ids, d)[rows, at - 1] for d in (torch.float64, dtype))
    judge.log_probabilities(-torch.stack(each), ids[rows, at].tolist(), reference, golden, what="loss of one token")
    mean = torch.stack(each).double().mean()
    off = float(together.double() / mean) - 1
    judge.between("loss of all beside the mean of each", off, -ROUNDINGS, ROUNDINGS)


@torch.no_grad()
@pytest.mark.applies(architecture=sorted(experts.DESCRIPTIONS), real=(False,))
def test_experts_take_every_token_of_a_call(case, attention, dtype, device, model, make_ids, truth, judge):
    """ATTN-2: a model's logits under a backend MUST be as close to float64 as plain eager attention's in that dtype."""
    ids = make_ids(batch=1, length=129)
    golden, reference = (truth(model, ids, precision) for precision in (torch.float64, dtype))

    # one text many times over: as many tokens as a long prompt's, and no more of which a rounding chooses the expert
    with attention.in_model(model):
        candidates = model(ids.expand(16, -1), use_cache=False).logits

    judge(candidates, reference.expand_as(candidates), golden.expand_as(candidates))


WINDOWED = [frozenset({"window"}), frozenset({"gqa", "window"}), frozenset({"gqa", "window", "softcap"})]
UNWINDOWED = [frozenset(), frozenset({"gqa"}), frozenset({"mla"})]
SMALL = pytest.mark.applies(real=(False,))  # a trained model costs seconds each, and logic shows in a small one
BATCHES = [
    pytest.param(Padding("none"), marks=SMALL),
    Padding("left"),
    pytest.param(Padding("left", step=False, compiled=True), marks=SMALL),
    pytest.param(Padding("right", step=False), marks=SMALL),
    # A cache that drops old tokens hides whether the mask does.
    pytest.param(Padding("left", keeps=True), marks=pytest.mark.applies(needs=WINDOWED, real=(False,))),
    # A window, and MPT's ALiBi, count slots of the cache, so for them padding in the middle of a row is no padding.
    pytest.param(
        Padding("right"), marks=pytest.mark.applies(needs=UNWINDOWED, positions=("rope", "learned"), real=(False,))
    ),
]


@torch.no_grad()
@pytest.mark.parametrize("padding", BATCHES, ids=str)
def test_row_of_a_batch_equals_the_row_alone(
    case, attention, dtype, padding, device, own_kernels, model, make_ids, truth, judge
):
    """ATTN-16: a row of a padded batch MUST have the logits that it has alone, as a prompt and one cached step on."""
    long, short = make_ids(batch=2, length=41)
    rows = [long, short if padding.side == "none" else short[:24]]
    goldens = [truth(model, row[None], torch.float64)[0] for row in rows]
    references = [truth(model, row[None], dtype)[0] for row in rows]
    with attention.in_model(model) as called, kernels(device, own_kernels) as ran:
        candidates = after_padding(model, rows, padding)

    judge.ran("kernels", own_kernels, ran)
    judge.ran("calls", () if called is None else [attention.name], called or ())
    for name, candidate, reference, golden in zip(("long", "short"), candidates, references, goldens, strict=True):
        judge(candidate, reference, golden, what=f"{name} row")
