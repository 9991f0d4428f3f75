"""A served model still reads at the lengths that are claimed: the same tokens cost no more, and a pass key is found."""

import pytest

from fixtures import text
from fixtures.reach import AGAIN, DEPTHS, QUANTIZED, REACHES, Cell, ladder, must_reach, passkeys, trained_length
from fixtures.references import allowed

pytestmark = pytest.mark.takes_minutes


@pytest.mark.parametrize("reach", REACHES, ids=str)
@pytest.mark.applies(real=(True,))
def test_perplexity_holds_to_the_claimed_context(case, reach, device, bench, reader, judge):
    """POS-14: perplexity on the same tokens MUST hold to the claimed context, or else to the trained length."""
    model, claimed = bench.shelf.model(case, reach.dtype, device), bench.deployment.context
    trained = trained_length(model.config)
    lengths = reach.rungs(reach.lengths, trained, claimed, case.longest)

    found = ladder(model, reader, lengths, reach.documents)

    judge.evidence |= {"curve": found.curve(case.name, trained), "perplexity by context": found.perplexities()}
    judge.evidence["said"] = found.said
    judge.evidence |= {"text": text.checksum(), "trained": trained, "claimed": claimed or "nothing"}
    for length, ratio in found.grown(claimed or trained, trained):
        judge.interval(f"perplexity at {length} tokens", ratio, ideal=1, high=allowed()["served"]["perplexity"])
    must_reach(lengths, claimed, device.type, bench.environment.devices)


@pytest.mark.parametrize("reach", QUANTIZED, ids=str)
@pytest.mark.applies(real=(True,))
def test_perplexity_of_a_quantized_model_holds(case, quantizer, reach, device, bench, reader, judge):
    """POS-14: perplexity on the same tokens MUST hold to the claimed context, or else to the trained length."""
    model, claimed = bench.shelf.quantized(case, quantizer, device), bench.deployment.context
    trained = trained_length(model.config)

    found = ladder(model, reader, reach.rungs(reach.lengths, trained, claimed, case.longest), reach.documents)

    line = f"{case.name}, {quantizer.name}"
    judge.evidence |= {"curve": found.curve(line, trained), "perplexity by context": found.perplexities()}
    judge.evidence["said"] = found.said
    for length, ratio in found.grown(claimed or trained, trained):
        judge.interval(f"perplexity at {length} tokens", ratio, ideal=1, high=allowed()["served"]["perplexity"])


@pytest.mark.parametrize("reach", REACHES, ids=str)
@pytest.mark.applies(real=(True,))
def test_a_pass_key_is_found_to_the_claimed_context(case, reach, device, bench, reader, draw, judge):
    """POS-15: a pass key MUST be found, at every depth, to the claimed context, or else to the trained length."""
    model, claimed = bench.shelf.model(case, reach.dtype, device), bench.deployment.context
    trained = trained_length(model.config)
    lengths = reach.rungs(reach.key_lengths, trained, claimed, case.longest)

    low = allowed()["served"]["passkey"]

    def ask(cells, keys=AGAIN * reach.keys):
        return passkeys(model, reader, cells, keys, draw)

    found = ask([Cell(length, depth) for length in lengths for depth in DEPTHS], reach.keys)

    judge.evidence |= {"pass keys": found.table(), "trained": trained, "claimed": claimed or "nothing"}
    for where, cells in found.groups(claimed or trained).items():
        share, asked = found.settled(cells, low, ask)
        judge.evidence |= {} if asked is found else {f"asked again {where}": asked.table()}
        judge.interval(f"pass keys found {where}", share, ideal=1, low=low, of="keys")
    must_reach(lengths, claimed, device.type, bench.environment.devices)
