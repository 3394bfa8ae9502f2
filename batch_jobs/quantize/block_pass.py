"""Calibration samples carried through the model stage by stage of each block; it knows no quantisation.

A stage's inputs depend on the matrices of the stages before, so a stage is run only once those are quantised, and
nothing is run twice but the first half of the MLP: what the stages before left behind is kept for every sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from batch_jobs.quantize.matrices import STAGES
from batch_jobs.quantize.source_model import SourceModel

BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Samples that run together: 16384 tokens of an MLP of 14336 are 0.5 GB in bfloat16, and their fp32 copy one more."""
SMALLEST_MEAN_SQUARE = 1e-6
"""Beside a stream of zeros nothing may count without limit."""
ON_DEVICE_BYTES = 5 * 2**30
"""Hidden states up to this stay in the GPU's memory, larger ones wait in the host's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInputs:
    inputs: Tensor
    """[samples, tokens, K]"""
    weights: Tensor | None
    """[samples, tokens, 1]: 1 over the mean square of the residual stream that the outputs are added to; None: all 1.

    Whatever reads the stream next divides by its root mean square, so an error counts by its share of the stream. All
    tokens alike, as in the GPTQ paper, a window's first one would decide alone where models park large values: 85 % of
    the input energy of the embedded model's model.layers.28.mlp.down_proj is that of 8 of 2048 tokens, and GPTQ with
    equal weights (4 bits, groups of 64) makes the perplexity 21.5 by this one block instead of 18.5.
    """


class BlockPass:
    """Hidden states of some samples, between two blocks or inside one."""

    def __init__(self, source: SourceModel, windows: Tensor) -> None:
        """windows: [samples, tokens] token ids"""
        self._source = source
        self._rotary = source.rotary(windows.shape[1])
        samples = max(1, BATCH_TOKENS[source.device.type] // windows.shape[1])
        num_bytes = 2 * windows.numel() * source.tensors.shape.hidden * source.dtype.itemsize
        self._home = source.device if num_bytes <= ON_DEVICE_BYTES else torch.device("cpu")
        self._hidden = [source.embed(batch).to(self._home) for batch in windows.split(samples)]
        self._attended: list[Tensor] = [torch.empty(0)] * len(self._hidden)
        self._block: Any = None
        self._out: dict[str, nn.Module] = {}

    def enter(self, block: nn.Module) -> None:
        """The block's last matrices are taken out of its two halves, so that their inputs come out."""
        self._block = block
        attention, mlp = self._block.self_attn, self._block.mlp
        self._out = {"self_attn.o_proj": attention.o_proj, "mlp.down_proj": mlp.down_proj}
        attention.o_proj, mlp.down_proj = nn.Identity(), nn.Identity()

    def parameter(self, name: str) -> Tensor:
        """A weight of the block as the pass uses it: self_attn.q_proj.weight, input_layernorm.weight, ..."""
        module, _, kind = name.rpartition(".")
        owner = self._out[module] if module in self._out else self._block.get_submodule(module)
        parameter: Tensor = getattr(owner, kind)
        return parameter

    def run(self, stage: int) -> Iterator[TokenInputs]:
        """What a stage's matrices read, batch by batch; every stage in its turn, each to its end."""
        for at in range(len(self._hidden)):
            inputs = self._stage_inputs(stage, at)
            yield TokenInputs(inputs=inputs, weights=self._weights(at) if STAGES[stage].adds_to_residual else None)

    def leave(self) -> None:
        """The block's outputs, once its last stage is done."""
        for at in range(len(self._hidden)):
            hidden = self._on_device(self._hidden[at])
            gated = self._block.mlp(self._block.post_attention_layernorm(hidden))
            self._hidden[at] = (hidden + self._out["mlp.down_proj"](gated)).to(self._home)
        self._block, self._out = None, {}

    def _stage_inputs(self, stage: int, at: int) -> Tensor:
        hidden = self._on_device(self._hidden[at])
        if stage == 0:
            return self._block.input_layernorm(hidden)
        if stage == 1:
            normed = self._block.input_layernorm(hidden)
            # Without a mask a window is causal; it is not padded, and no longer than a sliding window (checked before).
            attended, _ = self._block.self_attn(normed, position_embeddings=self._rotary, attention_mask=None)
            self._attended[at] = attended.to(self._home)
            return attended
        if stage == 2:
            hidden = hidden + self._out["self_attn.o_proj"](self._on_device(self._attended[at]))
            self._hidden[at] = hidden.to(self._home)
            return self._block.post_attention_layernorm(hidden)
        return self._block.mlp(self._block.post_attention_layernorm(hidden))

    def _weights(self, at: int) -> Tensor:
        hidden = self._on_device(self._hidden[at]).float()
        return 1 / (hidden.square().mean(dim=-1, keepdim=True) + SMALLEST_MEAN_SQUARE)

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._source.device)
