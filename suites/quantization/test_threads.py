"""Two threads that ask a quantized layer at once are answered as if each had it to itself."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from fixtures import layers

pytestmark = pytest.mark.applies(layers=(True,))

# So many new layers are asked for the first time at once: some pack their weights then.
LAYERS = 8


@pytest.mark.parametrize("layer", [layers.PLAIN], ids=str)
@pytest.mark.parametrize("asked", ["at-once"])
def test_two_requests_at_once_are_answered_as_alone(asked, layer, quantizer, device, draw, judge):
    """QUANT-5: a quantized layer MUST answer equal inputs with equal bits, whatever it was asked before."""
    weight, bias = layers.weights(layer, quantizer, draw)
    given = [layers.activations(layer, 33, draw).to(device, quantizer.dtype) * factor for factor in (1, 8)]
    together = Barrier(2)

    def ask(module, x, wait=lambda: None):
        wait()
        with torch.no_grad():
            return module(x)

    with ThreadPoolExecutor(2) as threads:
        wanted = [threads.submit(ask, quantizer.layer(weight, bias, device), x).result() for x in given]
        modules = [quantizer.layer(weight, bias, device) for _ in range(LAYERS)]
        at_once = [[_said(f) for f in [threads.submit(ask, m, x, together.wait) for x in given]] for m in modules]
        after = [[_said(threads.submit(ask, m, x)) for x in given] for m in modules]

    for when, answers in (("at once", at_once), ("after that", after)):
        wrong = [found for pair in answers for found in map(_apart, pair, wanted) if found]
        judge.exactly(
            f"answers {when} that differ from a single thread's, of {2 * LAYERS}",
            len(wrong),
            0,
            detail=" ".join(wrong[:1]),
        )


def _said(asked):
    """What a layer answered, or why it raised."""
    return asked.exception() or asked.result()


def _apart(answer, wanted):
    """In what an answer is another one, empty where it is not."""
    if isinstance(answer, Exception):
        return f"{type(answer).__name__}: {answer}"
    return "" if torch.equal(answer, wanted) else f"off by {float((answer - wanted).abs().max()):.2g}"
