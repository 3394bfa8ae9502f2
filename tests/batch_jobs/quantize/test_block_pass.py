"""Samples carried block by block are what the whole model computes; what a token counts follows its residual stream."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from batch_jobs.quantize.block_pass import BlockPass
from batch_jobs.quantize.matrices import STAGES
from batch_jobs.quantize.source_model import SourceModel


def read_by(module: nn.Module, into: dict[str, Tensor], name: str) -> None:
    module.register_forward_pre_hook(lambda _, args: into.update({name: args[0]}))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@torch.no_grad()
def test_every_matrix_reads_what_it_reads_in_the_whole_model(family: str, tiny: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    windows = torch.arange(96).view(2, 48) * 31
    model = AutoModelForCausalLM.from_pretrained(tiny[family], dtype=torch.float32).eval()
    expected: dict[str, Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        read_by(layer.post_attention_layernorm, expected, f"{index}.stream")
        for stage in STAGES:
            read_by(layer.get_submodule(stage.matrices[0]), expected, f"{index}.{stage.matrices[0]}")
    hidden_states = model(windows, output_hidden_states=True).hidden_states
    source = SourceModel(tiny[family], torch.device("cpu"))
    samples = BlockPass(source, windows)
    for index in range(3):
        samples.enter(source.block(index))
        for at, stage in enumerate(STAGES):
            (read,) = samples.run(at)
            torch.testing.assert_close(read.inputs, expected[f"{index}.{stage.matrices[0]}"], atol=1e-5, rtol=1e-5)
            assert (read.weights is not None) == stage.adds_to_residual
            if read.weights is not None:
                stream = hidden_states[index] if at == 1 else expected[f"{index}.stream"]
                torch.testing.assert_close(read.weights[..., 0], 1 / stream.square().mean(dim=-1), rtol=1e-3, atol=0)
        samples.leave()
