"""Rotation against transformers' and the reference, the write into the cache, the scalings that are refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.kv_layout import LayerCache, allocate_kv_cache, gather_keys
from kernels.rotary import rope_tables, rotary_kv_write, rotary_kv_write_reference


def one_layer(kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> LayerCache:
    return allocate_kv_cache(
        num_blocks=12, layers=2, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, dtype=dtype
    )[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"), [(9, 3, 64, 16), (4, 4, 80, 8), (2, 1, 128, 24), (3, 1, 40, 8)]
)
def test_equals_the_reference(
    heads: int, kv_heads: int, head_dim: int, block_size: int, normed: bool, dtype: torch.dtype
) -> None:
    num_rows = 60
    qkv = torch.randn(num_rows, (heads + 2 * kv_heads) * head_dim)
    positions = torch.randint(0, 500, (num_rows,))
    slots = torch.randperm(12 * block_size)[:num_rows]
    slots[7] = -1
    norms = (torch.randn(head_dim), torch.randn(head_dim)) if normed else (None, None)
    tables = rope_tables(head_dim, 512)
    cache, expected_cache = (one_layer(kv_heads, head_dim, block_size, dtype) for _ in range(2))
    q = rotary_kv_write(qkv, positions, slots, tables, cache, *norms)
    expected = rotary_kv_write_reference(qkv, positions, slots, tables, expected_cache, *norms)
    torch.testing.assert_close(q, expected, rtol=1e-5, atol=1e-5)
    # a last bit of fp32 may round a bf16 the other way
    tolerance = 1e-5 if dtype is torch.float32 else 8e-3
    torch.testing.assert_close(cache.keys, expected_cache.keys, rtol=tolerance, atol=1e-5)
    assert torch.equal(cache.values, expected_cache.values)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "default"},
        {"type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
)
def test_tables_are_those_of_transformers(scaling: dict[str, object] | None) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    parameters = {"rope_theta": 50000.0, "rope_type": "default", **(scaling or {})}
    parameters["rope_type"] = parameters.get("type", parameters["rope_type"])
    config = llama.LlamaConfig(
        hidden_size=128,
        num_attention_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        rope_parameters=parameters,
    )
    cos, sin = llama.LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(512)[None])
    tables = rope_tables(64, 512, theta=50000.0, scaling=scaling)
    torch.testing.assert_close(tables.cos, cos[0, :, :32], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(tables.sin, sin[0, :, :32], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope"])
def test_other_scalings_are_refused_by_name(kind: str) -> None:
    with pytest.raises(ValueError, match=kind):
        rope_tables(64, 128, scaling={"rope_type": kind, "factor": 2.0})


def test_rows_are_independent(assert_rows_independent: Callable[..., None]) -> None:
    qkv = torch.randn(100, 15 * 64)
    positions, slots = torch.arange(100), torch.randperm(12 * 16)[:100]
    tables = rope_tables(64, 128)

    def rotated_and_stored(rows: slice) -> Tensor:
        cache = one_layer(3, 64, 16, torch.bfloat16)
        q = rotary_kv_write(qkv[rows], positions[rows], slots[rows], tables, cache)
        keys = gather_keys(cache, torch.arange(12))[slots[rows]]
        return torch.cat([q.flatten(1), keys.flatten(1)], dim=1)

    assert_rows_independent(rotated_and_stored, len(qkv))
