"""Whether agreement would be judged alike on other documents: `python -m suites.meta.resample_agreement --times 100`.

Each quantizer is asked about the frozen text once; then as many documents are drawn from it, with replacement, and
judged as the checks judge them. What is not passed is a false alarm, and is printed. The ratios that are held to slacks
go to a table in `fixtures/calibration/`, from which `python -m suites.meta.calibrate --derive` writes the slacks.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections import Counter
from collections.abc import Iterator

import torch

from fixtures import environment, quantizers, text
from fixtures.agreement import Agreement, expected
from fixtures.inputs import generator
from fixtures.registry import Registry
from fixtures.served import serve
from fixtures.shelf import Shelf
from fixtures.stretches import STRETCHES
from fixtures.tokenizing import tokenize
from suites.meta.tables import Key, Sample, write_table
from suites.quantization.test_agreement import LENGTH, METRICS


def resamplings(found: Agreement, times: int) -> Iterator[Agreement]:
    """As many documents as there are, drawn with replacement; one that is drawn twice counts as two."""
    count = int(found.documents.max()) + 1
    of = [(found.documents == number).nonzero().flatten() for number in range(count)]
    for time in range(times):
        drawn = torch.randint(count, (count,), generator=generator(time, "documents")).tolist()
        which = torch.cat([of[number] for number in drawn])
        names = torch.cat([torch.full((len(of[number]),), place) for place, number in enumerate(drawn)])
        yield found.at(which).renamed(names)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tier", choices=["standard", "full"], default="standard")
    parser.add_argument("--model", default="")
    chosen = parser.parse_args(arguments)

    registry, shelf, device = Registry(), Shelf(), torch.device(chosen.device)
    served = serve(chosen.model, trust_remote_code=False, allow_pickle=False)
    served.pytest_spiritlevel_model(registry.registrar("pytest_spiritlevel_model"))
    quantizers.pytest_spiritlevel_quantizer(registry.registrar("pytest_spiritlevel_quantizer"))
    (case,) = registry.of("models")
    texts = tokenize(case, text.documents(), LENGTH)
    samples: dict[Key, list[Sample]] = {}
    alarms: Counter[str] = Counter()
    for quantizer in registry.of("quantizers"):
        if quantizer.tier not in ("standard", chosen.tier) or quantizer.refuses(chosen.device, None, {}):
            continue
        found = shelf.agreement(case, quantizer, device, texts)
        limits = expected(quantizer.scheme, shelf.model(case, torch.float32, device).num_parameters())
        for again in resamplings(found, chosen.times):
            again.refuse_contradictions()
            alarms.update(_alarms(again, limits, quantizer.name))
            for key, value in _ratios(again, quantizer.name):
                samples.setdefault(key, []).append(Sample(max(value, 1 / value), "documents::resampled"))
        print(f"{quantizer.name}: {chosen.times} resamplings", flush=True)
    print("false alarms:", dict(alarms) or "none")
    here = environment.probe()
    stack = f"{datetime.date.today()}, {chosen.times} resamplings of the documents, {here.cpu}, "
    stack += ", ".join(f"{k} {v}" for k, v in here.versions.items() if k in ("torch", "transformers", "bitsandbytes"))
    write_table(f"{chosen.device}-documents", samples, stack)
    return bool(alarms)


def _alarms(found: Agreement, limits: dict[str, float], name: str) -> Iterator[str]:
    """What would not have passed."""
    intervals = found.intervals()
    for metric, (ideal, low, high) in METRICS.items():
        outcome, _, _ = intervals[metric].against(ideal=ideal, low=limits.get(low or ""), high=limits.get(high or ""))
        if outcome != "passed":
            yield f"{name}, {metric}: {outcome}"


def _ratios(found: Agreement, name: str) -> Iterator[tuple[Key, float]]:
    """The ratios that are held to slacks, as the checks measure them."""
    quantity = "changed first choices ÷ what noise of this KL makes"
    yield ("QUANT-9", quantity, "any", name), found.flips_against_chance().estimate
    for stretch in STRETCHES:
        if not stretch.long:
            here = found.kl[stretch.of(found.positions, LENGTH - 1)]
            yield ("QUANT-10", "KL here ÷ KL of all positions", "any", name), float(here.mean() / found.kl.mean())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
