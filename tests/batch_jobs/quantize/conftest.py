"""Small models of random weights with a tokenizer, and the inputs' statistics of the embedded model's first block."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from batch_jobs.quantize.block_pass import BlockPass
from batch_jobs.quantize.calibration import CalibrationSettings, read_calibration
from batch_jobs.quantize.input_statistics import InputStatistics, InputSums
from batch_jobs.quantize.matrices import STAGES
from batch_jobs.quantize.source_model import SourceModel
from engine.checkpoint import ensure_checkpoint

SIZES = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "vocab_size": 49152}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products lose more to a second thread than they gain; workers set one for their whole process too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def embedded() -> Path:
    return ensure_checkpoint("embedded:smollm2-135m")


@pytest.fixture(scope="session")
def text_file() -> Path:
    return Path(__file__).parents[3] / "README.md"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> dict[str, Path]:
    """llama: tied embeddings, queries in groups; qwen2: biases, a head of its own, keys for every query head."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    configs = {
        "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
        "qwen2": Qwen2Config(**{**SIZES, "num_key_value_heads": 4}, tie_word_embeddings=False),
    }
    folders = {}
    for name, config in configs.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():  # norms of 1 and biases of 0 would hide a mix-up
                parameter.add_(torch.randn_like(parameter) * 0.1)
        folders[name] = tmp_path_factory.mktemp("models") / name
        model.save_pretrained(folders[name])
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(embedded / file, folders[name])
    return folders


@pytest.fixture(scope="session")
def first_block(embedded: Path, text_file: Path) -> dict[str, tuple[Tensor, InputStatistics]]:
    """Weights [N, K] fp32 and inputs of the embedded model's first block, over eight windows of 128 tokens."""
    settings = CalibrationSettings(file=text_file, num_samples=8, seq_len=128)
    calibration = read_calibration(settings, embedded)
    with torch.no_grad():
        source = SourceModel(embedded, torch.device("cpu"))
        block = BlockPass(source, torch.tensor(calibration.windows))
        block.enter(source.block(0))
        found = {}
        for at, stage in enumerate(STAGES):
            sums: InputSums | None = None
            for read in block.run(at):
                sums = sums or InputSums(read.inputs.shape[-1], read.inputs.device)
                sums.add(read.inputs, read.weights)
            assert sums is not None
            measured = sums.mean()
            for name in stage.matrices:
                found[name] = source.tensors.matrix(0, name).float(), measured
    return found
