"""Checkpoints that the engine's tests share: a GGUF file of two layers, made here."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from engine.checkpoint import ensure_checkpoint


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random Q8_0 and F32 weights and a byte-level tokenizer without merges."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    hidden, ffn, heads, kv_heads, head_dim, layers = 64, 96, 4, 2, 16, 2
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyzĠĊ.0123456789", "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(256)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        weight = random.standard_normal(shape, dtype=np.float32) * 0.1
        if len(shape) == 1:
            writer.add_tensor(name, 1 + weight)
        else:
            quantised = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    add("token_embd.weight", len(tokens), hidden)
    add("output_norm.weight", hidden)
    for layer in range(layers):
        add(f"blk.{layer}.attn_norm.weight", hidden)
        add(f"blk.{layer}.attn_q.weight", heads * head_dim, hidden)
        add(f"blk.{layer}.attn_k.weight", kv_heads * head_dim, hidden)
        add(f"blk.{layer}.attn_v.weight", kv_heads * head_dim, hidden)
        add(f"blk.{layer}.attn_output.weight", hidden, heads * head_dim)
        add(f"blk.{layer}.ffn_norm.weight", hidden)
        add(f"blk.{layer}.ffn_gate.weight", ffn, hidden)
        add(f"blk.{layer}.ffn_up.weight", ffn, hidden)
        add(f"blk.{layer}.ffn_down.weight", hidden, ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded model's folder."""
    return ensure_checkpoint("embedded:smollm2-135m")


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of random weights, one of each family and rope type, saved by transformers; none has a tokenizer."""
    import torch
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 250}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    llama3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    made = {
        "llama": transformers.LlamaConfig(**sizes, tie_word_embeddings=True),
        "llama3": transformers.LlamaConfig(**sizes, rope_parameters=llama3),
        "llama-linear": transformers.LlamaConfig(**{**sizes, "num_key_value_heads": 1}, rope_parameters=linear),
        "mistral": transformers.MistralConfig(**sizes, sliding_window=None),
        "qwen2": transformers.Qwen2Config(**sizes, tie_word_embeddings=True),
        "qwen3": transformers.Qwen3Config(**sizes, head_dim=32, rms_norm_eps=1e-5),
    }
    folders = {}
    for name, config in made.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():  # norms of 1 and biases of 0 would hide a mix-up
                parameter.add_(torch.randn_like(parameter) * 0.1)
        folders[name] = tmp_path_factory.mktemp("models") / name
        model.save_pretrained(folders[name], max_shard_size="100KB" if name == "qwen3" else "1GB")
    return folders
