"""What the tests of the GPU's engine share: models of random weights, small ones for Triton's interpreter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kernels.gpu import gemv


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def _few_programs_a_product() -> Iterator[None]:
    """The interpreter's time is by program: a product of one row takes four outputs in each, not one or two."""
    if torch.cuda.is_available():
        yield
        return
    tuned = gemv.default_config
    gemv.default_config = lambda *args, **options: replace(tuned(*args, **options), rows=4)
    yield
    gemv.default_config = tuned


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def write_smollm2_config(folder: Path) -> Path:
    """SmolLM2-135M's shape alone, for made-up weights."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_checkpoint(folder: Path, *, seed: int = 0, std: float = 0.22, **config: object) -> Path:
    """A Llama (or what `config` says) of random weights, without a tokenizer.

    Its defaults are the smallest that show a mix-up of heads, layers or columns: the interpreter takes milliseconds for
    each row of a matrix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 41,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
    } | config
    (folder / "config.json").write_text(json.dumps(values))
    hidden, ffn, vocab = (int(str(values[key])) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, kv_heads, head_dim = (
        int(str(values[key])) for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * std).bfloat16()

    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden) * 3, "lm_head.weight": matrix(vocab, hidden)}
    tensors["model.norm.weight"] = torch.ones(hidden).bfloat16()
    is_qwen3 = values["architectures"] == ["Qwen3ForCausalLM"]
    for layer in range(int(str(values["num_hidden_layers"]))):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = (1 + 0.1 * torch.randn(hidden, generator=generator)).bfloat16()
        for name, rows in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            tensors[f"{prefix}.self_attn.{name}_proj.weight"] = matrix(rows * head_dim, hidden)
        if is_qwen3:
            for name in ("q_norm", "k_norm"):
                tensors[f"{prefix}.self_attn.{name}.weight"] = torch.full((head_dim,), 1.5).bfloat16()
        tensors[f"{prefix}.self_attn.o_proj.weight"] = matrix(hidden, heads * head_dim)
        tensors[f"{prefix}.mlp.gate_proj.weight"] = matrix(ffn, hidden)
        tensors[f"{prefix}.mlp.up_proj.weight"] = matrix(ffn, hidden)
        tensors[f"{prefix}.mlp.down_proj.weight"] = matrix(hidden, ffn)
    save_file(tensors, folder / "model.safetensors")
    return folder
