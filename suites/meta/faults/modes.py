"""Faults of the modes that a model is run in, of weights that change, and of sizes that small models do not have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from suites.meta.faults import after_loading, fault, patches, swapped

FILE, SIZES = "attention/test_modes.py", "attention/test_sizes.py"
ROWS = "every_mode and {}-float32-{}"


@fault(
    "ATTN-16",
    FILE,
    ROWS.format("as-loaded", "bigcode-mqa"),
    source="as models are that `from_config` makes",
    unseen="configs without dropout; whoever calls eval() himself",
)
def a_loaded_model_trains() -> Iterator[None]:
    """`from_pretrained` leaves a model in training mode, and dropout acts."""
    with after_loading(lambda model: model.train()):
        yield


@fault(
    "ATTN-16",
    FILE,
    ROWS.format("with-gradients", "bigcode-mqa"),
    source="our own: the wrong question of torch",
    unseen="requests under no_grad or inference_mode; configs without dropout",
)
def dropout_acts_where_gradients_are_kept() -> Iterator[None]:
    """Attention drops weights where gradients are enabled, and not where a module trains."""

    def change(call: Any, *args: Any, **more: Any) -> Any:
        return call(*args, **more | {"dropout": 0.1 * torch.is_grad_enabled()})

    with patches.interface(change):
        yield


@fault(
    "ATTN-16",
    FILE,
    ROWS.format("inference", "llama-gqa"),
    source="https://github.com/pytorch/pytorch/issues/97111",
    unseen="no_grad; texts without padding",
)
def inference_mode_knows_no_padding() -> Iterator[None]:
    """A fast path that only inference mode takes is causal, and drops the mask."""

    def change(call: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        fast = torch.is_inference_mode_enabled() and q.shape[-2] > 1
        return call(module, q, k, v, None if fast else mask, **more)

    with patches.interface(change):
        yield


@fault(
    "ATTN-16",
    FILE,
    ROWS.format("checkpointing", "llama-gqa"),
    source="our own: whether it trains is not asked",
    unseen="models that were not fine-tuned in this process; prompts",
)
def checkpointing_keeps_no_cache() -> Iterator[None]:
    """Layers of a model whose gradients are checkpointed write no cache, though nothing trains."""

    def forward(original: Any, layer: Any, *args: Any, **more: Any) -> Any:
        if layer.gradient_checkpointing:
            more |= {name: None for name in ("cache", "past_key_values") if name in more}
        return original(layer, *args, **more)

    with patches.forward("LlamaDecoderLayer", forward):
        yield


@fault(
    "ATTN-2",
    FILE,
    "autocast and llama-gqa",
    source="https://github.com/huggingface/transformers/pull/29285, before it",
    unseen="models that are loaded in half precision; the first positions",
)
def autocast_rounds_the_positions() -> Iterator[None]:
    """Under autocast the positions that angles are made of are rounded to bfloat16."""

    def forward(original: Any, module: Any, x: Tensor, position_ids: Tensor, *args: Any, **more: Any) -> Any:
        if torch.is_autocast_enabled(x.device.type):
            position_ids = position_ids.to(torch.bfloat16)
        return original(module, x, position_ids, *args, **more)

    with patches.forward("LlamaRotaryEmbedding", forward):
        yield


@fault(
    "ATTN-2",
    FILE,
    "changed_in_place and bfloat16-llama-gqa",
    source="our own: weights are taken for constants, as a graph that is frozen takes them",
    unseen="models that are asked for the first time after they were merged",
)
def weights_are_packed_at_the_first_request() -> Iterator[None]:
    """A linear layer multiplies with the weight that it had at its first request."""
    original = F.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if "packed" not in vars(weight):
            vars(weight)["packed"] = weight.detach().clone()
        return original(x, vars(weight)["packed"].to(weight), bias)

    with swapped(F, "linear", linear):
        yield


@fault(
    "ATTN-2",
    SIZES,
    "vocabulary",
    source="our own: an index of two bytes",
    unseen="vocabularies of up to 65,536 tokens",
)
def tokens_are_counted_in_sixteen_bits() -> Iterator[None]:
    """The embedding's row is the token's number modulo 65,536."""
    original = F.embedding

    def embedding(ids: Tensor, *args: Any, **more: Any) -> Tensor:
        return original(ids % 2**16, *args, **more)

    with swapped(F, "embedding", embedding):
        yield


@fault("ATTN-2", SIZES, "hidden", source="our own: a block that nobody loops over", unseen="hidden sizes up to 1,024")
def a_norm_reads_one_block() -> Iterator[None]:
    """The root mean square is that of the first 1,024 features."""

    def forward(original: Any, norm: Any, x: Tensor) -> Tensor:
        block = x[..., :1024].float().square().mean(-1, keepdim=True) + norm.variance_epsilon
        return norm.weight * (x.float() * block.rsqrt()).to(x.dtype)

    with patches.forward("LlamaRMSNorm", forward):
        yield


@fault(
    "ATTN-2",
    SIZES,
    "experts and bfloat16",
    source="https://github.com/pytorch/pytorch/issues/155268, of its kind",
    unseen="float32, which takes another path",
)
def last_tokens_of_a_call_have_no_expert() -> Iterator[None]:
    """In half precision experts take tokens by eights, and those beyond the last whole eight get nothing of them."""
    from transformers.models.mixtral import modeling_mixtral

    owner = modeling_mixtral.MixtralSparseMoeBlock
    original = owner.forward

    def forward(self: Any, x: Tensor) -> Any:
        found = original(self, x)
        y = found[0] if isinstance(found, tuple) else found
        count = x.shape[:-1].numel()
        if x.dtype != torch.float32:
            y.view(count, -1)[count // 8 * 8 :] = 0
        return found

    with swapped(owner, "forward", forward):
        yield


@fault(
    "ATTN-2",
    "attention/test_model_logits.py",
    "test_logits and eager-opt-post-float32",
    options=("--tier", "full"),
    source="our own: what most releases have, for what all have",
    unseen="OPT's own releases, which say ReLU; not Galactica's",
)
def every_opt_is_rectified() -> Iterator[None]:
    """OPT's activation is ReLU, whatever its config says."""
    from transformers.models.opt import modeling_opt

    original = modeling_opt.OPTDecoderLayer.__init__

    def init(self: Any, *args: Any, **more: Any) -> None:
        original(self, *args, **more)
        self.activation_fn = torch.nn.ReLU()

    with swapped(modeling_opt.OPTDecoderLayer, "__init__", init):
        yield


@fault(
    "ATTN-2",
    "attention/test_model_logits.py",
    "test_logits and eager-qwen3-experts-float32",
    options=("--tier", "full"),
    source="our own: a default of the fused kernel's, which renormalises",
    unseen="releases that say norm_topk_prob, as Qwen3-30B-A3B does",
)
def scores_of_experts_are_always_normalised() -> Iterator[None]:
    """The chosen experts' scores are made to sum to 1, whatever the config says."""
    from transformers import Qwen3MoeConfig

    original = Qwen3MoeConfig.from_dict.__func__

    def from_dict(cls: Any, found: dict[str, Any], *args: Any, **more: Any) -> Any:
        return original(cls, found | {"norm_topk_prob": True}, *args, **more)

    with swapped(Qwen3MoeConfig, "from_dict", classmethod(from_dict)):
        yield


@fault(
    "ATTN-2",
    "attention/test_model_logits.py",
    "test_logits and eager-smollm3-still-float32",
    options=("--tier", "full"),
    source="our own: a list of a config's that a conversion leaves out",
    unseen="architectures that rotate in every layer",
)
def layers_without_positions_are_rotated() -> Iterator[None]:
    """SmolLM3 rotates in every layer, whatever its config says."""
    from transformers.models.smollm3 import modeling_smollm3

    original = modeling_smollm3.SmolLM3Attention.__init__

    def init(self: Any, *args: Any, **more: Any) -> None:
        original(self, *args, **more)
        self.use_rope = True

    with swapped(modeling_smollm3.SmolLM3Attention, "__init__", init):
        yield


MASKS = "mask_of_any_dtype and {}-float32-llama-gqa"


@fault(
    "ATTN-16",
    FILE,
    MASKS.format("floats"),
    source="https://github.com/pytorch/pytorch/issues/92554",
    unseen="masks of integers and bools",
)
def masks_of_floats_hide_nothing() -> Iterator[None]:
    """A padding mask of floats is taken for one that is added to scores, where 0 and 1 hide nothing."""

    def model(original: Any, self: Any, *args: Any, **more: Any) -> Any:
        given = more.get("attention_mask")
        ignored = given is not None and given.is_floating_point()
        return original(self, *args, **more | ({"attention_mask": None} if ignored else {}))

    with patches.forward("LlamaModel", model):
        yield


@fault(
    "ATTN-16",
    FILE,
    MASKS.format("bools"),
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html, of its key_padding_mask",
    unseen="masks of numbers",
)
def masks_of_bools_say_what_to_hide() -> Iterator[None]:
    """A padding mask of bools is taken the other way round, as torch's own MultiheadAttention takes it."""

    def model(original: Any, self: Any, *args: Any, **more: Any) -> Any:
        given = more.get("attention_mask")
        turned = given is not None and given.dtype == torch.bool
        return original(self, *args, **more | ({"attention_mask": ~given} if turned else {}))

    with patches.forward("LlamaModel", model):
        yield
