"""GGUF to safetensors: every tensor, the order of q and k rows, the tokenizer's splits, and the model's own answer."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from cluster.errors import UserError
from engine.checkpoint import ensure_checkpoint
from engine.gguf_checkpoint import _bf16_bytes, _rows_in_halves, convert


def llama_cpp_permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's convert_hf_to_gguf.py orders q and k rows."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 8), (9, 64)])
def test_rows_come_back_to_halves(heads: int, head_dim: int) -> None:
    weight = np.random.default_rng(0).standard_normal((heads * head_dim, 5), dtype=np.float32)
    np.testing.assert_array_equal(_rows_in_halves(llama_cpp_permute(weight, heads), heads), weight)


def test_bf16_rounds_as_torch_does() -> None:
    import torch

    values = np.random.default_rng(1).standard_normal(4096).astype(np.float32)
    ties = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x80000001], dtype=np.uint32).view(np.float32)
    values = np.concatenate([values, ties, -values])
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    assert _bf16_bytes(values) == expected


def test_every_tensor_of_the_file_is_in_the_checkpoint(tiny_gguf: Path, tmp_path: Path) -> None:
    convert(tiny_gguf, tmp_path, name="tiny")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tiny_gguf).tensors}
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert len(list(file.keys())) == len(tensors)
        for ours, theirs, heads in (
            ("model.embed_tokens.weight", "token_embd.weight", None),
            ("model.layers.1.self_attn.q_proj.weight", "blk.1.attn_q.weight", 4),
            ("model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight", 2),
            ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight", None),
        ):
            stored = gguf.quants.dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
            weight = file.get_tensor(ours).float().numpy()
            weight = llama_cpp_permute(weight, heads) if heads else weight
            np.testing.assert_allclose(weight, stored, rtol=2**-8)


def test_what_is_not_a_llama_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="'mamba' is not supported"):
        convert(tmp_path / "other.gguf", tmp_path, name="other")


def test_smollm2_tokens_are_the_published_ones() -> None:
    folder = ensure_checkpoint("embedded:smollm2-135m")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("The capital of France is").ids == [504, 3575, 282, 4649, 314]
    assert tokenizer.encode("In 2024, 17%").tokens == ["In", "Ġ", "2", "0", "2", "4", ",", "Ġ", "1", "7", "%"]
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    assert tokenizer.encode(system).ids == [
        *(1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519),
        *(28, 7018, 411, 407, 19712, 8182, 2, 198),
    ]
    text = "naïve ½ ²  日本語 🙂\n\tdef f(x):  return 'x'"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_smollm2_configs() -> None:
    folder = ensure_checkpoint("embedded:smollm2-135m")
    config = json.loads((folder / "config.json").read_text())
    assert (config["rms_norm_eps"], config["tie_word_embeddings"], config["vocab_size"]) == (1e-5, True, 49152)
    assert "quantization_config" not in config
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 0]
    assert "<|im_start|>assistant" in json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
