"""Equivalent mutants: nobody can see them, whatever is asked. Each is shown to change nothing, and none is counted.

Positions count by their differences, and a softmax has no use for what is added to a whole row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fixtures import inputs
from fixtures.configs import SMALL, VOCABULARY
from fixtures.decoding import decode, one_by_one
from fixtures.judgement import Judge
from fixtures.models import seeded_model
from fixtures.questions import Problem
from suites.meta.faults import FAULTS, patches, swapped
from suites.meta.faults.positions import rotary

Acted = list[bool]
MPT = ("mpt", {"d_model": 192, "n_heads": 6, "n_layers": 2, "max_seq_len": 64})


@dataclass(frozen=True)
class Equivalent:
    """A mutant, and in a dtype an output in whose making it acts: inject() is not empty once it has.

    promise: whose allowance for plain arithmetic it is held to.
    """

    name: str
    statement: str
    promise: str
    source: str
    why: str
    output: Callable[[torch.dtype], Tensor]
    inject: Callable[[], AbstractContextManager[Acted]]
    area: str = "equivalent"
    checks: tuple[str, ...] = ("equivalent",)
    options: tuple[str, ...] = ()


EQUIVALENT: dict[str, Equivalent] = {}


def shown(mutant: Equivalent) -> tuple[bool, Judge]:
    """Whether the mutant acted, and the judge of its float32 output: as near to float64's as without it?"""
    reference, golden = mutant.output(torch.float32), mutant.output(torch.float64)
    with mutant.inject() as acted:
        candidate = mutant.output(torch.float32)
    judge = Judge(mutant.promise)
    judge(candidate, reference, golden)
    return bool(acted), judge


def equivalent(promise: str, output: Callable[[torch.dtype], Tensor], *, source: str, why: str) -> Callable[[Any], Any]:
    """Register a generator function as an equivalent mutant."""

    def register(generator: Callable[[], Iterator[Acted]]) -> Callable[[], Iterator[Acted]]:
        name, statement = generator.__name__, " ".join((generator.__doc__ or "").split())
        if name in FAULTS or name in EQUIVALENT:
            raise ValueError(f"two faults are called {name}")
        EQUIVALENT[name] = Equivalent(name, statement, promise, source, why, output, contextmanager(generator))
        return generator

    return register


def decoded(architecture: str, config: dict[str, Any]) -> Callable[[torch.dtype], Tensor]:
    """A small model's logits for a prompt of 33 tokens and, on its cache, four more one by one."""

    @torch.no_grad()
    def output(dtype: torch.dtype) -> Tensor:
        from transformers import DynamicCache

        model = seeded_model(architecture, config, 0).to(dtype)
        ids = inputs.tokens(2, 37, VOCABULARY, inputs.generator(0, architecture))
        return decode(model, DynamicCache(), ids, one_by_one(33, 37))

    return output


def attended(problem: Problem) -> Callable[[torch.dtype], Tensor]:
    """What torch's attention makes of seeded queries, keys and values; the last query sees the last key."""

    def output(dtype: torch.dtype) -> Tensor:
        q, k, v = inputs.qkv(problem, torch.float32, "cpu", inputs.generator(0, problem)).to(dtype)
        causal, shared = problem.rows == problem.length, problem.heads != problem.kv_heads
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=shared)

    return output


@equivalent(
    "POS-3", decoded(*SMALL["llama-gqa"][:2]), source="our own: a table that starts at 7", why="differences count"
)
def every_rotary_position_is_shifted() -> Iterator[Acted]:
    """All positions, of queries and keys, cached or not, are 7 too large."""
    acted: Acted = []

    def change(forward: Any, module: Any, x: Tensor, positions: Tensor) -> Any:
        acted.append(True)
        return forward(module, x, positions + 7)

    with rotary(change):
        yield acted


@equivalent("POS-3", decoded(*MPT), source="our own: a table that starts at 7", why="differences count")
def every_alibi_position_is_shifted() -> Iterator[Acted]:
    """All of MPT's queries are 7 further away from all keys."""
    from transformers.models.mpt import modeling_mpt

    acted: Acted = []
    original = modeling_mpt.build_mpt_alibi_tensor

    def build(heads: int, length: int, *args: Any, **more: Any) -> Tensor:
        acted.append(True)
        longer: Tensor = original(heads, length + 7, *args, **more)
        return longer[..., :length]

    with swapped(modeling_mpt, "build_mpt_alibi_tensor", build):
        yield acted


@equivalent(
    "POS-3",
    decoded(*SMALL["bloom-alibi"][:2]),
    source="https://arxiv.org/abs/2108.12409",
    why="a softmax has no use for what a whole row gains",
)
def alibi_counts_from_the_last_key() -> Iterator[Acted]:
    """Bloom's bias is slope × (key - last key), where it is slope × key: a constant less for each row."""
    from transformers.models.bloom.modeling_bloom import BloomAttention

    acted: Acted = []
    original = BloomAttention.forward

    def forward(self: Any, hidden_states: Tensor, residual: Tensor, alibi: Tensor, *args: Any, **more: Any) -> Any:
        acted.append(True)
        return original(self, hidden_states, residual, alibi - alibi[..., -1:], *args, **more)

    with swapped(BloomAttention, "forward", forward):
        yield acted


@contextmanager
def _tiled() -> Iterator[Acted]:
    acted: Acted = []

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        acted.append(True)
        groups = q.shape[1] // k.shape[1]
        return call(q, k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1), **more | {"enable_gqa": False})

    with patches.kernel(change):
        yield acted


TILED = "our own: repeat for repeat_interleave"


@equivalent("ATTN-1", attended(Problem("mha", 4, 4, 100)), source=TILED, why="there is nothing to repeat")
def heads_are_tiled_that_share_no_keys() -> Iterator[Acted]:
    """Key heads are tiled over the query heads, of which each has its own."""
    with _tiled() as acted:
        yield acted


@equivalent("ATTN-1", attended(Problem("mqa", 4, 1, 100)), source=TILED, why="all repeat the same head")
def heads_are_tiled_that_share_one_head() -> Iterator[Acted]:
    """The one key head is tiled over all query heads, where each is to be repeated in a group."""
    with _tiled() as acted:
        yield acted


@equivalent(
    "ATTN-1", attended(Problem("step", 4, 2, 100, queries=1)), source="our own: a loop from the end", why="sums commute"
)
def keys_are_read_from_the_last() -> Iterator[Acted]:
    """A single query reads its keys, each with its value, from the newest to the oldest."""
    acted: Acted = []

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        acted.append(True)
        return call(q, k.flip(-2), v.flip(-2), **more)

    with patches.kernel(change):
        yield acted
