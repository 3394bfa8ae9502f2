"""What the tests of evaluating share: a model of random weights with the embedded model's tokenizer, and texts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers

from cluster.config import FleetConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


@pytest.fixture(scope="session")
def tiny(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer and 64 channels that reads the embedded model's 49,152 tokens."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=49152,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=2,
        bos_token_id=1,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def config(tiny: Path) -> FleetConfig:
    return FleetConfig.of(
        {
            "model": {"name": "tiny", "source": str(tiny)},
            "variants": {"bf16": {}, "int8": {"method": "int8"}, "nf4": {"method": "nf4"}},
            "engine": {"max_context": 512, "kv_capacity_tokens": 512},  # little: B_best is small and quick
        }
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text((Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    return path
