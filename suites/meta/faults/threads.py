"""Faults of requests that come at once: what one of them leaves on a module, another reads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from suites.meta.faults import fault, swapped

AT_ONCE = "quantization/test_threads.py"


@fault(
    "QUANT-5",
    AT_ONCE,
    "at-once and bnb-int8",
    source="https://github.com/bitsandbytes-foundation/bitsandbytes/blob/main/bitsandbytes/autograd/_functions.py: "
    "MatmulLtState is kept on the layer",
    unseen="one request at a time",
)
def scales_of_activations_lie_on_the_layer() -> Iterator[None]:
    """An int8 layer leaves how large its activations are on itself, and reads it there when it has multiplied."""
    from bitsandbytes.nn import Linear8bitLt

    forward = Linear8bitLt.forward

    def change(self: Any, x: Tensor) -> Tensor:
        self.largest = x.abs().amax()
        time.sleep(1e-3)
        return forward(self, x) * (self.largest / x.abs().amax()).to(x.dtype)

    with swapped(Linear8bitLt, "forward", change):
        yield
