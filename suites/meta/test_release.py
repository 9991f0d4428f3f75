"""A release's own files, read without the library that serves it: each tensor as the model calls it, or why not."""

import gguf
import numpy as np
import pytest
import torch

from fixtures import release
from fixtures.judgement import Unverified

HEADS, KV_HEADS, SIZE = 4, 2, 8


@pytest.fixture
def written(tmp_path):
    """A GGUF file of a Llama that holds some tensors, by GGUF's names for them."""

    def write(**tensors):
        writer = gguf.GGUFWriter(tmp_path / "llama.gguf", "llama")
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        for name, value in tensors.items():
            writer.add_tensor(name, np.asarray(value, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "llama.gguf"

    return write


def in_pairs(value, heads):
    """As llama.cpp's convert_hf_to_gguf.py permutes a release's queries and keys."""
    halves = value.reshape(heads, 2, len(value) // heads // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


def test_weights_and_biases_of_a_gguf_file_are_the_releases(written):
    made = torch.Generator().manual_seed(0)
    queries = torch.randn(HEADS * SIZE, 3, generator=made)
    keys = torch.randn(KV_HEADS * SIZE, generator=made)
    tensors = {"blk.12.attn_q.weight": in_pairs(queries, HEADS), "blk.12.attn_k.bias": in_pairs(keys, KV_HEADS)}

    found = dict(release.tensors(written(**tensors, **{"rope_freqs.weight": [1, 1]}), None))

    assert list(found) == ["model.layers.12.self_attn.q_proj.weight", "model.layers.12.self_attn.k_proj.bias"]
    assert torch.equal(found["model.layers.12.self_attn.q_proj.weight"], queries)
    assert torch.equal(found["model.layers.12.self_attn.k_proj.bias"], keys)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rope_freqs.weight", "stretches rope by rope_freqs.weight, which transformers drops"),
        ("blk.0.ffn_gate_exps.weight", "holds blk.0.ffn_gate_exps.weight, a place for which is not written down"),
        ("blk.0.ffn_gate.3.weight", "holds blk.0.ffn_gate.3.weight, a place for which is not written down"),
        ("output_scale", "holds output_scale, a place for which is not written down"),
    ],
)
def test_what_a_gguf_file_holds_and_its_model_does_not_leaves_the_release_unverified(written, name, told):
    with pytest.raises(Unverified, match=rf"llama\.gguf {told}: name the release's folder of safetensors"):
        dict(release.tensors(written(**{name: [1, 8]}), None))
