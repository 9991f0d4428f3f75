"""Beyond the trained length: which encodings hold, and which are seen to break.

The reference models were trained on 128 bytes and are asked about the same bytes of the frozen text at every length of
context.
"""

import pytest

from fixtures.checkpoints import LONGEST, TRAINED
from fixtures.references import Length, allowed

pytestmark = pytest.mark.takes_minutes
BEYOND = [Length(TRAINED * 2, tier="full"), Length(TRAINED * 4, tier="full"), Length(LONGEST)]
ONE_AND_A_HALF = Length(TRAINED * 3 // 2)


@pytest.mark.parametrize("context", BEYOND, ids=str)
@pytest.mark.parametrize("reference", ["alibi", "rope-yarn", "rope-linear"])
def test_an_encoding_that_extrapolates_holds_its_loss(reference, context, device, references, judge):
    """POS-10: an encoding made to extrapolate MUST keep its loss on the same tokens, to the length it is made for."""
    grown = references.grown(reference, context.tokens, device)

    judge.evidence |= {"curve": references.curve(reference, device), **references.facts(reference, device)}
    judge.interval("nats a byte more than at 128", grown, ideal=0, high=allowed()["reference"]["grown"][reference])


@pytest.mark.parametrize(
    ("reference", "context"),
    [("rope-yarn-untrained", Length(LONGEST)), ("rope-dynamic-untrained", Length(TRAINED * 4, tier="full"))],
    ids=str,
)
def test_a_scaling_without_training_does_not_collapse(reference, context, device, references, judge):
    """POS-11: YaRN on weights that were not trained for it MUST NOT collapse within its factor; nor dynamic NTK."""
    grown = references.grown(reference, context.tokens, device)
    dearer = references.dearer(reference, context.tokens, device, than="rope")

    judge.evidence |= {"curve": references.curve(reference, device), **references.facts(reference, device)}
    limits = allowed()["reference"]
    judge.interval("nats a byte more than at 128", grown, ideal=0, high=limits["grown"][reference])
    judge.interval("nats a byte more than plain RoPE at 128", dearer, ideal=0, high=limits["dearer"][reference])


@pytest.mark.parametrize("context", [Length(LONGEST)], ids=str)
@pytest.mark.parametrize("reference", ["rope", "learned", "sinusoidal"])
def test_an_encoding_that_does_not_extrapolate_is_seen_to_collapse(reference, context, device, references, judge):
    """POS-12: positions that do not extrapolate MUST be seen to collapse at eight times the trained length."""
    grown = references.grown(reference, context.tokens, device)

    judge.evidence |= {"curve": references.curve(reference, device), **references.facts(reference, device)}
    low = allowed()["reference"]["collapsed"][reference]
    judge.interval("nats a byte more than at 128", grown, ideal=2 * low, low=low)


@pytest.mark.parametrize("context", [ONE_AND_A_HALF], ids=str)
@pytest.mark.parametrize("reference", ["learned", "sinusoidal"])
def test_plain_rope_degrades_later(reference, context, device, references, judge):
    """POS-13: plain RoPE MUST degrade later than learned and sinusoidal positions do."""
    ahead = references.ahead("rope", reference, context.tokens, device)

    judge.evidence |= references.facts(reference, device)
    low = allowed()["reference"]["later"][reference]
    judge.interval(f"nats a byte that RoPE at {context} grew less", ahead, ideal=2 * low, low=low)
