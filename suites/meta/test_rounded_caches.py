"""Rows of a cache that rounds are the same only where they are numbers of the same kind in the same place."""

import math

import pytest
import torch

from fixtures.caching import Seen
from fixtures.rounded_caches import furthest_row
from suites.kv_cache.test_beams import SAME

KEYS, VALUES = torch.randn(2, 3, 2, 9, 4, generator=torch.Generator().manual_seed(0))
NAN = VALUES.index_fill(1, torch.tensor([1]), math.nan)
OTHERS = {
    "values are NaN": Seen(KEYS, NAN, 0),
    "keys are NaN": Seen(NAN, VALUES, 0),
    "another dtype": Seen(KEYS, VALUES.double(), 0),
    "another place": Seen(KEYS, VALUES, 1),
    "fewer tokens": Seen(KEYS[:, :, :8], VALUES[:, :, :8], 0),
    "another row's values": Seen(KEYS, VALUES[[0, 2, 1]], 0),
    "one token of another row": Seen(torch.cat([KEYS[[1, 0, 2], :, :1], KEYS[:, :, 1:]], 2), VALUES, 0),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_rows_are_far(other):
    wanted = Seen(KEYS, VALUES, 0)

    assert furthest_row(wanted, wanted) == 0
    assert not furthest_row(other, wanted) <= SAME
