"""The model to be quantised, of which one decoder block at a time is in memory; it quantises nothing.

transformers builds the blocks, without memory for their weights (torch's meta device); safetensors fill one of them.
"""

from __future__ import annotations

import copy
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from batch_jobs.quantize.matrices import block_matrices, block_prefix, block_vectors, outer_tensors
from cluster.model_shape import ModelShape
from engine.weights import CheckpointTensors


class SourceTensors:
    """A checkpoint's tensors by what they are, each of the size that config.json says, or UserError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shape = ModelShape.from_hf_config(folder)
        self._tensors = CheckpointTensors(folder)
        self.sizes = {matrix.name: (matrix.rows, matrix.columns) for matrix in block_matrices(self.shape)}

    def __enter__(self) -> SourceTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensors.__exit__(kind, error, trace)

    def matrix(self, index: int, name: str) -> Tensor:
        """[N, K] as stored."""
        return self._tensors.read(f"{block_prefix(index)}{name}.weight", *self.sizes[name])

    def vectors(self, index: int) -> dict[str, Tensor]:
        """Norm weights and biases of a block, as stored."""
        prefix = block_prefix(index)
        return {name: self._tensors.read(prefix + name, size) for name, size in block_vectors(self.shape).items()}

    def read(self, name: str, *size: int) -> Tensor:
        return self._tensors.read(name, *size)

    def num_bytes(self) -> int:
        """Of all tensors; each is mapped, none is copied."""
        total = sum(self.read(name, *size).nbytes for name, size in outer_tensors(self.shape).items())
        for index in range(self.shape.layers):
            total += sum(self.matrix(index, name).nbytes for name in self.sizes)
            total += sum(vector.nbytes for vector in self.vectors(index).values())
        return total


class SourceModel:
    """Decoder blocks as modules: float32 on a CPU, bfloat16 on a GPU, as the model is meant to run there."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        self.tensors = SourceTensors(folder)
        self.device = device
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            self._skeleton: Any = AutoModelForCausalLM.from_config(config, dtype=self.dtype).eval()
        self._rotary = type(self._skeleton.model.rotary_emb)(config=config).to(device)  # its table is no weight

    def embed(self, token_ids: Tensor) -> Tensor:
        """[...] -> [..., hidden]; of the table only the rows that are asked for are read."""
        shape = self.tensors.shape
        table = self.tensors.read("model.embed_tokens.weight", shape.vocab, shape.hidden)
        return nn.functional.embedding(token_ids, table).to(self.dtype)

    def rotary(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """cos and sin of positions 0 .. num_tokens - 1."""
        positions = torch.arange(num_tokens, device=self.device)[None]
        cos, sin = self._rotary(torch.zeros(1, device=self.device, dtype=self.dtype), positions)
        return cos, sin

    def block(self, index: int) -> nn.Module:
        """A decoder layer of transformers with its weights on the device."""
        block: nn.Module = copy.deepcopy(self._skeleton.model.layers[index])
        weights = {f"{name}.weight": self.tensors.matrix(index, name) for name in self.tensors.sizes}
        weights |= self.tensors.vectors(index)
        placed = {name: tensor.to(self.device, self.dtype, copy=True) for name, tensor in weights.items()}
        block.load_state_dict(placed, assign=True)
        return block.requires_grad_(False)
