"""How q, k and v lie in memory is nobody's business but the kernel's."""

import pytest
import torch

from fixtures.answers import REFUSED, answer
from fixtures.inputs import Qkv
from fixtures.oracles.attention import visible
from fixtures.questions import Problem
from fixtures.yardstick import yardstick


def heads_last(q, k, v):
    """As a projection leaves them: `(batch, length, heads, d)`, transposed."""
    return tuple(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))


def fused(q, k, v):
    """Keys and values are views of one buffer, as a fused projection leaves them."""
    buffer = torch.cat([t.transpose(1, 2) for t in (k, v)], 2)
    return q, *(t.transpose(1, 2) for t in buffer.split([k.shape[1], v.shape[1]], 2))


def head_by_head(q, k, v):
    """What belongs to a head lies together, token by token, as NeoX's and Falcon's fused projections leave it."""
    return tuple(
        torch.cat([t, t], -1).transpose(1, 2).contiguous()[..., : t.shape[-1]].transpose(1, 2) for t in (q, k, v)
    )


def mixed_strides(q, k, v):
    """Keys lie by head, values by token."""
    return q, k, v.transpose(1, 2).contiguous().transpose(1, 2)


def longer_cache(q, k, v):
    """The front of buffers that go on with something else."""
    return q, *(torch.cat([t, torch.full_like(t[..., :37, :], 1e4)], -2)[..., : t.shape[-2], :] for t in (k, v))


def offset(q, k, v):
    """The back of buffers that begin with something else."""
    return tuple(
        torch.cat([*[torch.full_like(t[..., :1, :], 1e4)] * 5, t], -2)[..., -t.shape[-2] :, :] for t in (q, k, v)
    )


def one_head_for_all(q, k, v):
    """One key head expanded to all, at stride 0."""
    return q, *(t[:, :1].expand(-1, q.shape[1], -1, -1) for t in (k, v))


def one_row_for_all(q, k, v):
    """One row expanded to the batch, at stride 0."""
    return q, *(t[:1].expand(q.shape[0], -1, -1, -1) for t in (k, v))


LAYOUTS = [heads_last, fused, head_by_head, mixed_strides, longer_cache, offset, one_head_for_all, one_row_for_all]
PROBLEMS = [
    Problem("causal-100", 4, 4, 100, batch=2),
    Problem("gqa-129", 4, 2, 129, head_dim=128, batch=2),
    Problem("decode-129", 4, 2, 129, queries=1, batch=2),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_layout_changes_nothing(attention, dtype, problem, layout, device, make_qkv, judge):
    """ATTN-11: strides, offsets and expanded views of q, k and v MUST NOT change the result, nor be written to."""
    qkv = Qkv(*layout(*make_qkv(problem)))
    before = Qkv(*(t.clone() for t in qkv))
    asked = problem.options()

    golden, reference = yardstick(*before, **asked)
    candidate = attention(*qkv, **asked)

    judge(candidate, reference, golden)
    judge.exactly(
        "inputs that were written to", sum(not torch.equal(a, b) for a, b in zip(qkv, before, strict=True)), 0
    )


MASKED = [
    Problem("padding-100", 4, 4, 100, batch=2, takes=frozenset({"mask"})),
    Problem("padding-gqa-129", 4, 2, 129, head_dim=128, batch=2, takes=frozenset({"mask"})),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("problem", MASKED, ids=str)
def test_layout_changes_nothing_under_a_mask(attention, dtype, problem, layout, device, make_qkv, judge):
    """ATTN-11: strides, offsets and expanded views of q, k and v MUST NOT change the result, nor be written to."""
    qkv = Qkv(*layout(*make_qkv(problem)))
    before = Qkv(*(t.clone() for t in qkv))
    key = torch.arange(problem.length + 3, device=device)
    longer = visible(problem.length, problem.length + 3, causal=False, device=device)[None, None] & (key >= 13)
    mask = longer[..., 3:].expand(problem.batch, -1, -1, -1)  # as a slice of a longer cache's mask

    golden, reference = yardstick(*before, mask=mask)
    candidate = attention(*qkv, causal=False, mask=mask)

    judge(candidate, reference, golden)
    judge.exactly(
        "inputs that were written to", sum(not torch.equal(a, b) for a, b in zip(qkv, before, strict=True)), 0
    )


def value_longer_than_key(q, k, v):
    return q, k[..., :-1, :], v


def value_shorter_than_key(q, k, v):
    return q, k, v[..., :-1, :]


def key_of_another_size(q, k, v):
    return q, k[..., :-8].contiguous(), v


def heads_that_do_not_divide(q, k, v):
    return q, k[:, :3], v[:, :3]


def fewer_value_heads(q, k, v):
    return q, k, v[:, :3]


MISFITS = [
    value_longer_than_key,
    value_shorter_than_key,
    key_of_another_size,
    heads_that_do_not_divide,
    fewer_value_heads,
]
MISFIT = [Problem("mha-64", 4, 4, 64, causal=False)]


@pytest.mark.parametrize("misfit", MISFITS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("problem", MISFIT, ids=str)
def test_shapes_that_do_not_fit_are_refused(attention, dtype, problem, misfit, device, make_qkv, judge):
    """ATTN-12: a call whose shapes do not fit MUST be refused, not computed from memory beyond a tensor's end."""
    q, k, v = misfit(*make_qkv(problem))

    came, judge.evidence["refused with"] = answer(lambda: attention(q, k, v, causal=False))

    judge.exactly(misfit.__name__.replace("_", " "), came, REFUSED)
