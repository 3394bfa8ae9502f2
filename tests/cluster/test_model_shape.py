"""ModelShape against published parameter counts, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UserError
from cluster.model_shape import ModelShape, rope_parameters

SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
LLAMA_31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_scaling": {"factor": 8.0, "rope_type": "llama3", "original_max_position_embeddings": 8192},
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "vocab_size": 32000,
}
QWEN2_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}


@pytest.mark.parametrize(
    ("config", "params", "kv_bytes"),
    [
        (SMOLLM2_135M, 134_515_008, 23_040),
        (LLAMA_31_8B, 8_030_261_248, 131_072),
        (QWEN2_05B, 494_032_768, 12_288),
        (QWEN3_06B, 596_049_920, 114_688),
    ],
)
def test_counts_are_the_published_ones(config: dict[str, Any], params: int, kv_bytes: int) -> None:
    shape = ModelShape.from_hf_config(config)
    assert shape.params == params
    assert shape.kv_bytes_per_token(2) == kv_bytes


def test_sliding_window_is_refused_unless_it_never_acts() -> None:
    with pytest.raises(UserError, match=r"sliding window of 4096 .* set engine.max_context to 4096"):
        ModelShape.from_hf_config(MISTRAL_7B)
    assert ModelShape.from_hf_config(MISTRAL_7B, max_context=4096).params == 7_241_732_096
    assert ModelShape.from_hf_config({**MISTRAL_7B, "sliding_window": None}).kv_heads == 8


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["DeepseekV3ForCausalLM"]}, "DeepseekV3ForCausalLM"),
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": None}, "none named"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "'longrope'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"num_hidden_layers": "thirty"}, "num_hidden_layers"),
    ],
)
def test_what_the_formula_would_get_wrong_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        ModelShape.from_hf_config({**SMOLLM2_135M, **change})
    assert "\n" not in str(caught.value)


def test_reads_a_folder_and_names_the_model_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-llama"
    folder.mkdir()
    with pytest.raises(UserError, match=r"config\.json: missing"):
        ModelShape.from_hf_config(folder)
    (folder / "config.json").write_text("{not json")
    with pytest.raises(UserError, match="not valid JSON"):
        ModelShape.from_hf_config(folder)
    (folder / "config.json").write_text(json.dumps(SMOLLM2_135M))
    shape = ModelShape.from_hf_config(folder)
    assert (shape.name, shape.head_dim, shape.tied_embeddings) == ("tiny-llama", 64, True)


def test_rope_parameters_of_both_config_forms() -> None:
    old = rope_parameters({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})
    new = rope_parameters({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}})
    assert {key: old[key] for key in ("rope_type", "rope_theta", "factor")} == new
    assert rope_parameters({}) == {"rope_type": "default", "rope_theta": 10000.0}


def test_linears_add_up() -> None:
    shape = ModelShape.from_hf_config(QWEN2_05B)
    assert shape.block_params == shape.layers * sum(linear.rows * linear.columns for linear in shape.block_linears)
    assert shape.params == shape.block_params + shape.vector_params + shape.embedding_params
