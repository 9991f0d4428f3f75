"""Positional encodings equal the formulas of their papers."""

from functools import partial

import pytest
import torch

from fixtures.distances import ROUNDOFF
from fixtures.oracles import alibi, rope
from fixtures.positions import like, rotary_tables

# Runs of 64 positions: the start, around usual training lengths, and far beyond.
STARTS = [0, 1000, 4064, 8160, 32736, 131040, 1048512]


def positions(start: int, device: torch.device) -> torch.Tensor:
    return torch.arange(start, start + 64, device=device)


def judge_tables(judge, tables, parameters, dim, at, what=""):
    """cos and sin at some positions against the formula, beside plain float32 ones rounded to the same dtype."""
    golden = rope.tables(parameters, dim, at, torch.float64)
    reference = rope.tables(parameters, dim, at, torch.float32)
    for name, candidate, plain, true in zip(("cos", "sin"), tables, reference, golden, strict=True):
        plain, true = like(candidate, plain.to(candidate.dtype)), like(candidate, true)
        judge(candidate, plain, true, what=f"{what} {name}".strip())


def ways(compute, at):
    """Tables of positions that are asked for together, and of the same where the last comes alone, as in decoding."""
    together, last = compute(at), compute(at[-1:])
    yield "", together
    yield "last alone", [torch.cat([t[..., :-1, :], one], -2) for t, one in zip(together, last, strict=True)]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.applies(kind=("rope",))
def test_rope_tables_equal_the_formula(encoding, start, device, judge):
    """POS-1: RoPE tables MUST equal their paper's formula to the rounding of their dtype, however far the position."""
    at = positions(start, device)

    for way, tables in ways(encoding.compute, at):
        judge_tables(judge, tables, encoding.parameters, encoding.parameters["dim"], at, way)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.applies(positions=("rope",))
def test_model_tables_equal_the_formula(case, dtype, start, device, model, judge):
    """POS-1: RoPE tables MUST equal their paper's formula to the rounding of their dtype, however far the position."""
    at, found = positions(start, device), rotary_tables(model)

    judge.exactly("rotary tables found", str(bool(found)), "True")
    for table in found:
        # what is asked in float32 shows how exact the frequencies are that a model of less precision holds
        for asked in dict.fromkeys((torch.float32, dtype)):
            for way, tables in ways(partial(table.at, dtype=asked), at):
                judge_tables(judge, tables, table.parameters, table.dim, at, f"{table.layer_type} {way}".strip())
        half, whole = (torch.cat(table.at(at, d), -1).float() for d in (torch.float16, torch.float32))
        # rounding is off by half a unit in the last place: no more than a whole one is let pass
        off = (half - whole).abs() > 2 * ROUNDOFF[torch.float16] * whole.abs().amax().clamp(min=1)
        what = f"{table.layer_type} entries in float16 that are not float32's, rounded".strip()
        judge.exactly(what, int(off.sum()), 0, detail=f"the first at position {at[off.any(-1)][:1].tolist()}")


@pytest.mark.parametrize(("length", "most"), [(2049, 128), (131073, 16)], ids=["2049", "131073"])
@pytest.mark.applies(kind=("alibi",))
def test_alibi_bias_equals_the_formula(encoding, length, most, device, judge):
    """POS-2: ALiBi's bias MUST equal slope times distance to the rounding of plain float32, for any count of heads."""
    rounding = encoding.parameters.get("rounding", "none")
    for heads in [count for count in encoding.parameters["heads"] if count <= most]:
        golden = alibi.last(heads, length, torch.float64, rounding).to(device)
        reference = alibi.last(heads, length, torch.float32, rounding).to(device)
        candidate = encoding.compute(heads, length, device)
        # softmax does not see a constant a head: the newest key's bias is taken to be zero
        judge(candidate - candidate[:, -1:], reference, golden, what=f"{heads} heads")
