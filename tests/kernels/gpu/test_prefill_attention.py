"""Causal prefill attention against float64: chunks of any length after any context, every head size and group."""

import pytest
import torch

from kernels.gpu.prefill_attention import (
    PrefillConfig,
    prefill_attention,
    prefill_attention_reference,
    prompt_attention_without_context,
)
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
        ([70, 5], [130, 0], 4, 2, 64, 128, torch.float32),
    ],
)
def test_matches_float64(device, relative_error, chunks, contexts, heads, kv_heads, head_dim, block_size, dtype):
    check(device, relative_error, chunks, contexts, heads, kv_heads, head_dim, block_size, dtype)


@pytest.mark.parametrize("config", [{"whole_group": False}, {"longest_first": True}])
def test_other_shares_of_the_work(device, relative_error, config):
    config = PrefillConfig(rows=32, tile_tokens=32, num_warps=4, max_registers=None, **config)
    check(device, relative_error, [70, 0, 33], [0, 50, 31], 6, 2, 64, 16, torch.float32, config)


def test_what_lies_past_a_sequence_does_not_matter(device, relative_error):
    cache = paged([21], kv_heads=1, head_dim=64, block_size=16, dtype=torch.float32, device=device)
    last = int(cache.block_tables[cache.rows[0], 1])
    cache.kv.keys[last, :, 5:] = torch.nan
    cache.kv.values[last, :, 5:] = torch.nan
    q = torch.randn(21, 2, 64, device=device)
    starts = torch.tensor([0, 21], dtype=torch.int32, device=device)
    given = (q, cache.kv, cache.block_tables, cache.rows, starts, torch.zeros_like(starts[:1]))
    assert relative_error(prefill_attention(*given, 21), prefill_attention_reference(*given)) < FP32


def test_refuses_tiles_that_do_not_fit_the_blocks(device):
    cache = paged([4], kv_heads=1, head_dim=64, block_size=24, dtype=torch.float32, device=device)
    one = torch.zeros(2, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="blocks of 24"):
        prefill_attention(torch.zeros(1, 4, 64, device=device), cache.kv, cache.block_tables, one[:1], one, one, 1)


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
        PrefillConfig(tile_tokens=32),
        PrefillConfig(whole_group=False),
        PrefillConfig(longest_first=True),
        PrefillConfig(rows=64, num_warps=4, max_registers=None),
    ],
)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(32, 8, 128), (32, 32, 96), (9, 3, 64)])
def test_long_chunks(device, relative_error, heads, kv_heads, head_dim, config):
    chunks, contexts = [1000, 1, 257, 512], [0, 700, 1025, 3000]
    check(device, relative_error, chunks, contexts, heads, kv_heads, head_dim, 16, torch.bfloat16, config)


@pytest.mark.gpu
def test_prompts_without_context_by_torch(device, relative_error):
    chunks = [100, 1, 1024, 33]
    starts = torch.tensor([0, *chunks], device=device).cumsum(0).int()
    cache = paged(chunks, kv_heads=8, head_dim=128, block_size=16, dtype=torch.bfloat16, device=device)
    q = torch.randn(sum(chunks), 32, 128, device=device).bfloat16()
    k, v = torch.randn(sum(chunks), 16, 128, device=device).bfloat16().split(8, dim=1)
    for s, (start, length) in enumerate(zip(starts.tolist(), chunks, strict=False)):
        blocks = cache.block_tables[cache.rows[s]][: -(-length // 16)].long()
        positions = torch.arange(length, device=device)
        cache.kv.keys[blocks[positions // 16], :, positions % 16] = k[start : start + length]
        cache.kv.values[blocks[positions // 16], :, positions % 16] = v[start : start + length]
    out = prompt_attention_without_context(q, k, v, starts, max(chunks))
    contexts = torch.zeros(len(chunks), dtype=torch.int32, device=device)
    reference = prefill_attention_reference(q, cache.kv, cache.block_tables, cache.rows, starts, contexts)
    assert relative_error(out, reference) < BF16


def test_torch_serves_prompts_on_cuda_only():
    q = torch.zeros(1, 2, 64)
    with pytest.raises(ValueError, match="CUDA"):
        prompt_attention_without_context(q, q, q, torch.tensor([0, 1], dtype=torch.int32), 1)
