"""Safetensors by name, whole and sharded, and one line for what is missing or of another shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from cluster.errors import UserError
from engine.weights import CheckpointTensors


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_every_tensor_is_what_transformers_reads(family: str, tiny_checkpoints: dict[str, Path]) -> None:
    folder = tiny_checkpoints[family]
    assert (folder / "model.safetensors.index.json").exists() == (family == "qwen3"), "qwen3 is the sharded one"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with CheckpointTensors(folder) as tensors:
        for name, parameter in model.named_parameters():
            assert torch.equal(tensors.read(name, *parameter.shape), parameter)
        assert "model.norm.weight" in tensors
        assert "model.norm.bias" not in tensors


def test_what_does_not_fit_the_config_is_one_line(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "codes": torch.zeros(2, 3, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    with CheckpointTensors(tmp_path) as tensors:
        for name, shape, said in (
            ("b", (2, 3), "tensor b is missing"),
            ("a", (3, 2), r"tensor a is float32 \[2, 3\], config.json asks for floats \[3, 2\]"),
            ("codes", (2, 3), "tensor codes is uint8"),
        ):
            with pytest.raises(UserError, match=said) as caught:
                tensors.read(name, *shape)
            assert "\n" not in str(caught.value)


def test_a_damaged_or_absent_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        CheckpointTensors(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        CheckpointTensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
    with pytest.raises(UserError, match=r"model-2\.safetensors"), CheckpointTensors(tmp_path) as tensors:
        tensors.read("a", 1)
