"""A model has the positions that its config declares, whichever way it was built."""

import pytest
import torch

from fixtures.materialise import ROUTES, asked_for, declared, in_older_words, in_oldest_words
from fixtures.positions import TRAINED, rotary_tables
from suites.positions.test_tables import judge_tables

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.applies(kind=("rope",), modelled=(True,))
def test_model_has_the_positions_that_are_declared(encoding, route, dtype, device, saved, decoded, some_ids, judge):
    """POS-5: a model MUST have the positions that its config declares, loaded or built on the meta device."""
    model = ROUTES[route](saved(encoding), dtype, device)
    ids = some_ids(batch=1, length=TRAINED)
    # the first half of the text and, far beyond what the model was trained on, its second
    at = torch.cat([torch.arange(TRAINED // 2), torch.arange(TRAINED // 2) + 10 * TRAINED]).to(device)

    for table in rotary_tables(model):
        judge_tables(judge, table.at(at, torch.float32), table.parameters, table.dim, at, table.layer_type)
    # without a mask, transformers takes a step in the positions for the start of another text
    candidate = model(ids, attention_mask=torch.ones_like(ids), position_ids=at[None], use_cache=False).logits
    golden, reference = (decoded(model, ids, precision, at[None]) for precision in (torch.float64, dtype))
    judge(candidate, reference, golden, what="logits")


@pytest.mark.applies(kind=("rope",), modelled=(True,))
def test_older_words_declare_the_same_positions(encoding, device, saved, judge):
    """POS-5: a model MUST have the positions that its config declares, loaded or built on the meta device."""
    folder = saved(encoding)
    wanted = declared(folder)

    judge.exactly("parameters, read from the words before transformers 5", declared(in_older_words(folder)), wanted)
    judge.exactly("parameters, read from the words before 4.43", declared(in_oldest_words(folder)), wanted)


@pytest.mark.applies(kind=("rope",), modelled=(True,))
def test_positions_that_are_asked_for_while_loading_are_declared(encoding, device, saved, judge):
    """POS-5: a model MUST have the positions that its config declares, loaded or built on the meta device."""
    folder = saved(encoding)
    wanted = declared(folder)

    judge.exactly("parameters, asked for and not in the file", asked_for(folder), wanted)
