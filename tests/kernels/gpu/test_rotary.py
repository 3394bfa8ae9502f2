"""Rotary and cache write of a prefill against float64: head sizes, norms, negative slots, int32 and int64 slots."""

import pytest
import torch

from kernels.gpu.rotary import rotary_kv_write, rotary_kv_write_reference
from kernels.rotary import rope_tables
from tests.kernels.gpu.paged import paged

BF16 = 5e-3
FP32 = 1e-6


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim", "block_size", "dtype", "normed", "slot_dtype"),
    [
        (1, 4, 2, 64, 16, torch.bfloat16, False, torch.int64),
        (17, 9, 3, 64, 16, torch.float32, True, torch.int32),
        (5, 3, 3, 96, 32, torch.bfloat16, True, torch.int32),
        (3, 32, 8, 128, 16, torch.float32, False, torch.int64),
        (4, 16, 1, 128, 8, torch.bfloat16, True, torch.int64),
    ],
)
def test_matches_float64(
    device, relative_error, tokens, heads, kv_heads, head_dim, block_size, dtype, normed, slot_dtype
):
    cache = paged([3 * tokens], kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, dtype=dtype, device=device)
    expected = cache.copy_of_kv()
    before = cache.copy_of_kv()
    tables = rope_tables(head_dim, 512, device=device)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, device=device).to(dtype)
    given = qkv.clone()
    positions = torch.randint(0, 512, (tokens,), dtype=torch.int32, device=device)
    slots = torch.randperm(cache.kv.keys.shape[0] * block_size, device=device)[:tokens].to(slot_dtype)
    slots[1::4] = -1
    norms = [torch.rand(head_dim, device=device) + 0.5 if normed else None for _ in range(2)]
    out = torch.full((tokens, heads, head_dim), torch.nan, dtype=dtype, device=device)
    assert rotary_kv_write(qkv, positions, slots, tables, cache.kv, *norms, out=out) is out
    q = rotary_kv_write_reference(qkv, positions, slots, tables, expected, *norms)
    bound = BF16 if dtype == torch.bfloat16 else FP32
    assert relative_error(out, q) < bound
    assert relative_error(cache.kv.keys, expected.keys) < bound
    assert torch.equal(cache.kv.values, expected.values)
    assert torch.equal(qkv, given)
    untouched = (expected.keys == before.keys).all(-1)
    assert torch.equal(cache.kv.keys[untouched], before.keys[untouched])


def test_refuses_rows_without_queries(device):
    kv = paged([4], kv_heads=2, head_dim=64, block_size=16, dtype=torch.float32, device=device).kv
    one = torch.zeros(1, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="do not hold heads"):
        rotary_kv_write(torch.zeros(1, 4 * 64, device=device), one, one, rope_tables(64, 4, device=device), kv)


@pytest.mark.gpu
@pytest.mark.parametrize("normed", [False, True])
def test_matches_float64_at_llama_8b(device, relative_error, normed):
    cache = paged([5000], kv_heads=8, head_dim=128, block_size=16, dtype=torch.bfloat16, device=device)
    expected = cache.copy_of_kv()
    tables = rope_tables(128, 8192, theta=500000.0, device=device)
    qkv = torch.randn(4099, 48 * 128, device=device).to(torch.bfloat16)
    positions = torch.randint(0, 8192, (4099,), dtype=torch.int32, device=device)
    slots = torch.randperm(cache.kv.keys.shape[0] * 16, device=device)[:4099]
    norms = [torch.rand(128, device=device) + 0.5 if normed else None for _ in range(2)]
    out = torch.full((4099, 32, 128), torch.nan, dtype=torch.bfloat16, device=device)
    rotary_kv_write(qkv, positions, slots, tables, cache.kv, *norms, out=out)
    q = rotary_kv_write_reference(qkv, positions, slots, tables, expected, *norms)
    assert relative_error(out, q) < BF16
    assert relative_error(cache.kv.keys, expected.keys) < BF16
    assert torch.equal(cache.kv.values, expected.values)
