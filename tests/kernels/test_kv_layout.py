"""The cache's size, its laziness, and that what is written at a slot is read there."""

import psutil
import pytest
import torch

from kernels.kv_layout import allocate_kv_cache, gather_keys, gather_values, kv_block_bytes, write_tokens

DTYPES = [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kv_heads", "head_dim", "block_size"), [(3, 64, 16), (1, 40, 8), (2, 128, 24)])
def test_tokens_are_read_where_they_were_written(
    kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> None:
    caches = allocate_kv_cache(
        num_blocks=6, layers=2, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, dtype=dtype
    )
    num_tokens = 2 * block_size + 3
    keys, values = torch.randn(2, num_tokens, kv_heads, head_dim).to(dtype)
    blocks = torch.tensor([4, 1, 3])
    places = torch.arange(num_tokens)
    slots = blocks[places // block_size] * block_size + places % block_size
    write_tokens(caches[1], slots, keys.float(), values.float())
    assert torch.equal(gather_keys(caches[1], blocks)[:num_tokens], keys.float())
    assert torch.equal(gather_values(caches[1], blocks)[:num_tokens], values.float())
    assert not caches[0].keys.any()
    assert not caches[0].values.any()


def test_the_size_is_the_formula() -> None:
    caches = allocate_kv_cache(num_blocks=10, layers=3, kv_heads=2, head_dim=64, block_size=16)
    held = sum(tensor.nbytes for cache in caches for tensor in (cache.keys, cache.values))
    assert held == 2 * 3 * 2 * 64 * 2 * 16 * 10 == 10 * kv_block_bytes(3, 2, 64, 16, torch.bfloat16)


def test_memory_is_taken_as_blocks_fill() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    caches = allocate_kv_cache(num_blocks=2000, layers=30, kv_heads=3, head_dim=64)
    assert process.memory_info().rss - before < 50e6, "737 MB were asked for"
    for cache in caches:
        cache.keys[:200] = 1
        cache.values[:200] = 1
    assert 60e6 < process.memory_info().rss - before < 120e6, "200 blocks are 74 MB"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size 12"):
        allocate_kv_cache(num_blocks=1, layers=1, kv_heads=1, head_dim=64, block_size=12)
    with pytest.raises(ValueError, match="float16"):
        allocate_kv_cache(num_blocks=1, layers=1, kv_heads=1, head_dim=64, dtype=torch.float16)
