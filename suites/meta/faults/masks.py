"""Faults of masks: whose they are, what is added, and what hidden slots and blind rows do to the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from suites.meta.faults import careful, fault, patches, swapped

FILE = "attention/test_mask.py"
MASKS = (FILE, "mask_shows and sdpa-float32 and bool")
LONG = (FILE, "mask_shows and sdpa-float32 and bool and 530")
BLIND = (FILE, "see_nothing and sdpa-float32")
HIDDEN = (FILE, "hidden_slots_change and sdpa-float32")
BIAS = ("attention/test_accuracy.py", "under_a_bias and sdpa-float32")
CAREFUL = (FILE, "nan_in_hidden and careful-float32")
CLAIMED = {"claims": ("hidden-nan",), "options": ("-p", careful.__name__)}


@fault(
    "ATTN-4",
    FILE,
    "mask_shows and sdpa-float32 and late",
    source="https://github.com/pytorch/pytorch/issues/127055",
    unseen="rows that see a key of the first tile",
)
def hidden_first_tile_makes_nan() -> Iterator[None]:
    """The online softmax starts on a tile that is hidden as a whole: -inf - -inf, though keys are visible later."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        out = call(q, k, v, **more)
        if more.get("attn_mask") is None or k.shape[-2] <= 512:
            return out
        return out.masked_fill(~patches.shown(q, k, more)[..., :512].any(-1, keepdim=True), torch.nan)

    with patches.kernel(change):
        yield


@fault("ATTN-4", *MASKS, source="https://github.com/huggingface/transformers/pull/48363", unseen="calls without a mask")
def boolean_mask_is_added() -> Iterator[None]:
    """A boolean mask is added to the scores: a visible key gains 1, and none is hidden."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        mask = more.get("attn_mask")
        more["attn_mask"] = mask.to(q.dtype) if mask is not None and mask.dtype == torch.bool else mask
        return call(q, k, v, **more)

    with patches.kernel(change):
        yield


@fault("ATTN-4", *MASKS, source="https://github.com/tenstorrent/tt-metal/pull/34974", unseen="one mask for all heads")
def heads_share_the_first_mask() -> Iterator[None]:
    """Every head is masked like head 0."""
    with patches.mask(lambda seen: seen[:, :1]):
        yield


@fault("ATTN-4", *MASKS, source="our own: a batch stride of 0", unseen="rows that are masked alike")
def rows_share_the_first_mask() -> Iterator[None]:
    """Every row of the batch is masked like row 0."""
    with patches.mask(lambda seen: seen[:1]):
        yield


@fault("ATTN-4", *MASKS, source="our own: decoding taken to see all", unseen="prompts; caches without padding")
def single_query_is_not_masked() -> Iterator[None]:
    """The kernel for a single query takes no mask."""
    with patches.mask(lambda seen: torch.ones_like(seen) if seen.shape[-2] == 1 else seen):
        yield


@contextmanager
def _bias(change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Patch what is added to the scores. change(added, q) -> added."""

    def own(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        mask = more.get("attn_mask")
        if mask is not None and mask.dtype != torch.bool:
            more["attn_mask"] = change(mask, q)
        return call(q, k, v, **more)

    with patches.kernel(own):
        yield


@fault(
    "ATTN-4",
    FILE,
    "mask_shows and sdpa-float32 and lowest",
    source="our own: only -inf is taken to hide",
    unseen="boolean masks; -inf",
)
def lowest_number_is_clamped() -> Iterator[None]:
    """What is added to the scores is kept above -30, lest something overflow: hidden keys weigh a little."""
    with _bias(lambda added, q: added.clamp(min=-30)):
        yield


@fault("ATTN-1", *BIAS, source="our own: a bias that joins the scores too early", unseen="biases of 0 and -inf")
def bias_is_scaled_with_the_scores() -> Iterator[None]:
    """The bias is added before the scale acts, and is scaled too."""
    with _bias(lambda added, q: added * q.shape[-1] ** -0.5):
        yield


@fault("ATTN-1", *BIAS, source="our own: a head stride of 0", unseen="one bias for all heads")
def heads_share_the_first_bias() -> Iterator[None]:
    """Every head has the bias of head 0."""
    with _bias(lambda added, q: added[:, :1]):
        yield


@fault("ATTN-1", *BIAS, source="our own: a mask's dtype fixed", unseen="bfloat16; biases of 0 and -inf")
def bias_is_kept_in_bfloat16() -> Iterator[None]:
    """What is added to float32 scores has passed through bfloat16."""
    with _bias(lambda added, q: added.bfloat16().to(added.dtype)):
        yield


@fault("ATTN-5", *BLIND, source="https://github.com/pytorch/pytorch/issues/103963", unseen="rows that see a key")
def blind_rows_are_nan() -> Iterator[None]:
    """A row that may see nothing is 0 / 0."""
    with patches.softmax(lambda scores, seen: torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)):
        yield


@fault("ATTN-5", *BLIND, source="our own: a tile that leaves early", unseen="tiles without a blind row")
def blind_rows_blind_their_tile() -> Iterator[None]:
    """A tile of 16 queries is skipped, and left at 0, where any of them sees nothing."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        out = call(q, k, v, **more)
        blind = ~patches.shown(q, k, more).any(-1, keepdim=True)
        tile = torch.arange(q.shape[-2], device=q.device)[:, None] // 16
        for skipped in tile[blind.flatten(0, -3).any(0)].unique():
            out = out.masked_fill(tile == skipped, 0)
        return out

    with patches.kernel(change):
        yield


@fault("ATTN-6", *HIDDEN, source="our own: the maximum is taken before the mask", unseen="hidden keys that score low")
def maximum_counts_hidden_keys() -> Iterator[None]:
    """Softmax subtracts the largest score, hidden or not: where that is a hidden key's, the rest underflows."""

    def change(scores: Tensor, seen: Tensor) -> Tensor:
        weights = (scores - scores.amax(-1, keepdim=True)).exp() * seen
        return weights / weights.sum(-1, keepdim=True)

    with patches.softmax(change):
        yield


@fault("ATTN-6", *HIDDEN, source="our own: 8 bits, one scale for the tensor", unseen="hidden slots that are small")
def scale_of_values_counts_hidden_slots() -> Iterator[None]:
    """Values are rounded to 8 bits, with a scale that the largest value sets, hidden or not."""

    def change(call: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        scale = v.abs().amax() / 127
        return call(q, k, (v / scale).round() * scale, **more)

    with patches.kernel(change):
        yield


def _read(name: str) -> AbstractContextManager[None]:
    """The careful backend, without its care for keys or for values."""
    return swapped(careful, name, lambda tensor, hidden: tensor)


@fault(
    "ATTN-7",
    *CAREFUL,
    source="https://github.com/Dao-AILab/flash-attention/issues/2374",
    unseen="finite values in hidden slots",
    **CLAIMED,
)
def hidden_values_are_multiplied_by_zero() -> Iterator[None]:
    """A hidden slot weighs 0, and its value is multiplied all the same: 0 × NaN."""
    with _read("values"):
        yield


@fault(
    "ATTN-7",
    *CAREFUL,
    source="https://github.com/deepbeepmeep/Wan2GP/pull/1628",
    unseen="finite keys in hidden slots",
    **CLAIMED,
)
def hidden_scores_are_added_to() -> Iterator[None]:
    """A hidden key's score has -inf added to it, and is not replaced: NaN - inf."""
    with _read("keys"):
        yield


@fault("ATTN-4", *LONG, source="our own: a row of a mask in nine bits", unseen="prompts of up to 512 tokens")
def rows_of_a_mask_wrap_beyond_512() -> Iterator[None]:
    """Query 512 + n of a prompt is masked as query n."""
    with patches.mask(lambda seen: seen[..., torch.arange(seen.shape[-2]) % 512, :]):
        yield


@fault("ATTN-4", *LONG, source="our own: a split that is not told where it begins", unseen="steps on up to 512 keys")
def each_split_reads_the_mask_from_its_beginning() -> Iterator[None]:
    """A step splits its keys at 512, and the second part is masked as the first."""

    def change(seen: Tensor) -> Tensor:
        return seen[..., torch.arange(seen.shape[-1]) % 512] if seen.shape[-2] == 1 else seen

    with patches.mask(change):
        yield
