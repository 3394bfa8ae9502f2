"""Causal prefill attention against float64: chunks of any length after any context, every head size and group."""

import pytest
import torch

from kernels.gpu.prefill_attention import PrefillConfig, prefill_attention, prefill_attention_reference
from tests.kernels.gpu.paged import paged

BF16 = 1e-2
FP32 = 1e-5


def check(device, relative_error, chunks, contexts, heads, kv_heads, head_dim, block_size, dtype, config=None):
    lengths = [chunk + context for chunk, context in zip(chunks, contexts, strict=True)]
    cache = paged(lengths, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, dtype=dtype, device=device)
    q = torch.randn(sum(chunks), heads, head_dim, device=device).to(dtype)
    starts = torch.tensor([0, *chunks], device=device).cumsum(0).int()
    context_lens = torch.tensor(contexts, dtype=torch.int32, device=device)
    out = torch.full_like(q, torch.nan)
    given = (q, cache.kv, cache.block_tables, cache.rows, starts, context_lens)
    assert prefill_attention(*given, max(chunks), out=out, config=config) is out
    assert relative_error(out, prefill_attention_reference(*given)) < (BF16 if dtype == torch.bfloat16 else FP32)


@pytest.mark.parametrize(
    ("chunks", "contexts", "heads", "kv_heads", "head_dim", "block_size", "dtype"),
    [
        ([70, 1, 33], [0, 50, 64], 4, 2, 64, 16, torch.bfloat16),
        ([70, 0, 33], [0, 50, 31], 4, 2, 64, 16, torch.float32),
        ([45], [17], 9, 3, 96, 8, torch.float32),
        ([5, 64], [200, 0], 3, 3, 128, 32, torch.bfloat16),
        ([1], [0], 16, 1, 64, 16, torch.float32),
        ([40], [90], 16, 1, 128, 16, torch.bfloat16),
        ([17, 3], [1, 127], 16, 8, 64, 16, torch.float32),
    ],
)
def test_matches_float64(device, relative_error, chunks, contexts, heads, kv_heads, head_dim, block_size, dtype):
    check(device, relative_error, chunks, contexts, heads, kv_heads, head_dim, block_size, dtype)


def test_refuses_heads_of_another_cache(device):
    cache = paged([4], kv_heads=3, head_dim=64, block_size=16, dtype=torch.float32, device=device)
    one = torch.zeros(2, dtype=torch.int32, device=device)
    q = torch.zeros(1, 4, 64, device=device)
    with pytest.raises(ValueError, match="do not fit"):
        prefill_attention(q, cache.kv, cache.block_tables, cache.rows, one, one, 1)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "config",
    [
        None,
        PrefillConfig(rows=64, num_warps=4),
        PrefillConfig(num_stages=2, max_registers=128),
        PrefillConfig(tile_tokens=128, num_stages=2),
    ],
)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(32, 8, 128), (32, 32, 96), (9, 3, 64)])
def test_long_chunks(device, relative_error, heads, kv_heads, head_dim, config):
    chunks, contexts = [1000, 1, 257, 512], [0, 700, 1025, 3000]
    check(device, relative_error, chunks, contexts, heads, kv_heads, head_dim, 16, torch.bfloat16, config)
