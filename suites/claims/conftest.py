"""What checks of claims ask for: the deployed model, loaded once for the claims that want it alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fixtures.claimed import Claim
from fixtures.judgement import Judge


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Claims about the same model follow each other, since to load it may take a minute."""
    places = [place for place, item in enumerate(items) if _claim(item)]
    ordered = sorted((items[place] for place in places), key=lambda item: [_loaded(s) for s in _claim(item).sides])
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


def _claim(item: pytest.Item) -> Any:
    claim = getattr(getattr(item, "callspec", None), "params", {}).get("claim")
    return claim if isinstance(claim, Claim) else None


def _loaded(side: Any) -> tuple[str, str]:
    return side.quantizer, side.dtype


@pytest.fixture
def sides(bench: Any, claim: Any, case: Any, device: torch.device, judge: Judge) -> list[Any]:
    """The deployed model as the claim has it, and as the side has it that it is held against.

    What is claimed to be quantized must be: of what is not, nothing is confirmed.
    """
    found = bench.audit.sides(case, claim.sides, device)
    for served in found:
        for quantized, wanted in bench.audit.layers(case, served):
            judge.exactly("quantized layers", quantized, wanted)
    return found
