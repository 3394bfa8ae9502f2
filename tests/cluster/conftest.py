"""Shapes and hardware that the tests of this folder plan with."""

from __future__ import annotations

import pytest

from cluster.accelerators import Accelerator, accelerator_named
from cluster.model_config import shape_of
from cluster.model_shape import ModelShape


@pytest.fixture(scope="session")
def smollm() -> ModelShape:
    return shape_of("embedded:smollm2-135m")


@pytest.fixture
def llama_8b() -> ModelShape:
    return ModelShape(
        name="llama-3.1-8b",
        architecture="LlamaForCausalLM",
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn=14336,
        vocab=128256,
        tied_embeddings=False,
        max_positions=131072,
    )


@pytest.fixture
def h100() -> Accelerator:
    return accelerator_named("H100-80G")


@pytest.fixture(scope="session")
def host() -> Accelerator:
    """Two cores of a server of 2021: 22 GB/s, 86 GFLOP/s, as measured on one."""
    return Accelerator(
        name="cpu-2",
        kind="cpu",
        memory_bytes=16 * 2**30,
        bandwidth_bytes_per_s=22e9,
        flops={"fp32": 86e9, "bf16": 86e9, "int8": 150e9},
        price_per_hour=0.08,
        cores=2,
    )
