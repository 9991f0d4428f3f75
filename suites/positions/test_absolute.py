"""Learned and sinusoidal positions: every row where it belongs, and an end that is told."""

import pytest
import torch

from fixtures.absolute import LENGTH, added, formula, past_the_end, released_rows
from fixtures.release import same_bits

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.applies(positions=("learned",))
def test_learned_positions_are_the_released_rows(case, dtype, device, model, judge):
    """POS-8: a learned position MUST be its row of the released table, bit for bit, a sinusoidal one its formula's."""
    length = min(LENGTH, case.longest)

    rows, released = added(model, length), released_rows(case, model, length)

    wrong = [str(n) for n, pair in enumerate(zip(rows, released, strict=True)) if not same_bits(*pair)]
    judge.exactly(f"rows that are not the released ones, of {length}", len(wrong), 0, place=" ".join(wrong[:3]))


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.applies(positions=("sinusoidal",))
def test_sinusoidal_positions_are_the_formula(case, dtype, device, model, judge):
    """POS-8: a learned position MUST be its row of the released table, bit for bit, a sinusoidal one its formula's."""
    length = model.config.max_position_embeddings

    candidate = added(model, length)

    judge(candidate, formula(model, length, torch.float32).to(dtype), formula(model, length, torch.float64))


@pytest.mark.applies(positions=("learned",))
def test_a_text_past_a_tables_end_is_refused(case, device, judge):
    """POS-9: a text longer than a learned table MUST be refused, longer than a sinusoidal one take the formula."""
    for where, (whole, longer) in past_the_end(case, device, case.longest, case.longest + 1).items():
        judge.exactly(f"{where}: a text as long as the table", whole, "answered")
        judge.exactly(f"{where}: a text one token longer", longer, "refused")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.applies(positions=("sinusoidal",))
def test_a_text_past_a_sinusoidal_table_takes_the_formula(case, dtype, device, model, judge):
    """POS-9: a text longer than a learned table MUST be refused, longer than a sinusoidal one take the formula."""
    length = max(LENGTH, model.config.max_position_embeddings + 1)

    candidate = added(model, length)

    judge(candidate, formula(model, length, dtype), formula(model, length, torch.float64))
