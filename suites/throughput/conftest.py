"""What ratios of time are taken with: pytest-benchmark calls one callable, which runs both ways in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures.judgement import Judge, Unverified
from fixtures.meters import elapsed
from fixtures.turns import ROUNDS, Turns


@pytest.fixture
def compare(benchmark: Any, device: torch.device, judge: Judge) -> Callable[..., None]:
    """`compare(what, one, other)`: record how many times as long the other way takes as the one, with its interval.

    It is recorded and not judged: what a deployment claims of speed is held by suites/claims.
    """

    def take(what: str, one: Callable[[], Any], other: Callable[[], Any]) -> None:
        turns = Turns([], [])

        def turn() -> None:
            turns.one.append(elapsed(one, device))
            turns.other.append(elapsed(other, device))

        benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=1)
        if len(turns.one) <= ROUNDS:
            raise Unverified("nothing is timed unless pytest is run with --benchmark-enable")
        counted = Turns(turns.one[1:], turns.other[1:])
        judge.evidence["ratio"] = counted.evidence(what)
        benchmark.extra_info.update(judge.evidence["ratio"])

    return take


@pytest.fixture
def right(judge: Judge) -> Callable[..., None]:
    """`right(what, prompt, tokens, logits)`: each token that followed is one that golden logits rank first.

    `logits(ids, dtype)` are the independent decoder's; `prompt` is `(rows, length)`, `tokens` `(rows, count)`.
    """

    def check(what: str, prompt: Tensor, tokens: Tensor, dtype: torch.dtype, logits: Callable[..., Tensor]) -> None:
        whole, start = torch.cat([prompt, tokens], 1), prompt.shape[1] - 1
        golden, reference = (logits(whole, d)[:, start:-1].flatten(0, 1) for d in (torch.float64, dtype))
        judge.ranked_first(tokens.flatten().tolist(), reference, golden, what=what)

    return check
