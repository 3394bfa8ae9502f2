"""Weights in memory: their bytes are the cost model's, and quantised ones come back from the cache as they went in."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from cluster.model_shape import ModelShape
from cluster.models import cache_dir
from cluster.variants import Variant
from engine.decoder_weights import DecoderWeights, load_decoder_weights
from tests.engine.stepping import VARIANTS

INT8 = Variant(name="int8", method="int8")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTFLEET_CACHE", str(tmp_path))


def load(folder: Path, variant: Variant) -> DecoderWeights:
    return load_decoder_weights(folder, ModelShape.from_hf_config(folder), variant)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_bytes_are_those_of_the_cost_model(family: str, variant: Variant, tiny_checkpoints: dict[str, Path]) -> None:
    folder = tiny_checkpoints[family]
    shape = ModelShape.from_hf_config(folder)
    # The cost model counts whole panels of 16 rows, which a table that is only looked up has no need of: 256 for 250.
    unpadded = 0 if shape.tied_embeddings else 6 * shape.hidden * (4 if variant.dtype == "fp32" else 2)
    assert load(folder, variant).nbytes == variant.resident_bytes(shape, "cpu") - unpadded


def test_bytes_of_the_embedded_model(smollm2: Path) -> None:
    variant = Variant(name="bf16")
    assert load(smollm2, variant).nbytes == variant.resident_bytes(ModelShape.from_hf_config(smollm2), "cpu")


def cached_files() -> list[Path]:
    return sorted((cache_dir() / "packed").glob("*"))


@pytest.mark.parametrize("variant", [INT8, Variant(name="nf4", method="nf4")], ids=lambda variant: variant.name)
def test_the_second_load_reads_what_the_first_one_made(variant: Variant, tiny_checkpoints: dict[str, Path]) -> None:
    first = load(tiny_checkpoints["qwen2"], variant)
    files = cached_files()
    stamps = [path.stat().st_mtime_ns for path in files]
    assert len(files) == 1
    second = load(tiny_checkpoints["qwen2"], variant)
    assert [path.stat().st_mtime_ns for path in cached_files()] == stamps, "nothing was made anew"
    for one, other in zip(first.layers, second.layers, strict=True):
        for name in ("qkv", "o", "gate_up", "down"):
            made, read = getattr(one, name).packed, getattr(other, name).packed
            for field in fields(made):
                before, after = getattr(made, field.name), getattr(read, field.name)
                same = torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after
                assert same, (name, field.name)


def test_plain_weights_are_not_kept_twice(tiny_checkpoints: dict[str, Path]) -> None:
    load(tiny_checkpoints["llama"], Variant(name="bf16"))
    assert cached_files() == []


def test_a_changed_checkpoint_is_packed_anew(tiny_checkpoints: dict[str, Path]) -> None:
    folder = tiny_checkpoints["mistral"]
    load(folder, INT8)
    before = [path.stat().st_ino for path in cached_files()]
    os.utime(folder / "model.safetensors", ns=(1, 1))
    load(folder, INT8)
    assert len(cached_files()) == 1
    assert [path.stat().st_ino for path in cached_files()] != before


def test_a_damaged_cache_file_is_packed_anew(tiny_checkpoints: dict[str, Path]) -> None:
    folder = tiny_checkpoints["mistral"]
    expected = load(folder, INT8)
    (path,) = cached_files()
    path.write_bytes(path.read_bytes()[:100])
    again = load(folder, INT8)
    assert again.nbytes == expected.nbytes
    assert path.stat().st_size > 100
