"""paged_attention against its reference and torch's, and that a token's result does not depend on its schedule."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels import threads
from kernels.kv_layout import LayerCache, allocate_kv_cache, gather_keys, gather_values, write_tokens
from kernels.paged_attention import paged_attention, paged_attention_reference

SHAPES = [(9, 3, 64, 16), (4, 4, 80, 8), (8, 1, 128, 24), (14, 2, 64, 32), (6, 2, 40, 8), (7, 7, 96, 16)]
DTYPES = [torch.bfloat16, torch.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Sequences of some lengths, their blocks scattered over a cache, and a query for every token."""

    q: Tensor
    cache: LayerCache
    tables: Tensor
    sequences: Tensor
    positions: Tensor

    def attend(self, rows: slice | Tensor) -> Tensor:
        chosen = (tensor[rows].contiguous() for tensor in (self.q, self.sequences, self.positions))
        q, sequences, positions = chosen
        return paged_attention(q, self.cache, self.tables, sequences, positions)


def scene(lengths: list[int], heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> Scene:
    blocks_each = [-(-length // block_size) for length in lengths]
    num_blocks = sum(blocks_each) + 3
    cache = allocate_kv_cache(
        num_blocks=num_blocks, layers=1, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, dtype=dtype
    )[0]
    free = torch.randperm(num_blocks).tolist()
    # entries past a sequence's blocks are never read: a block far outside would show
    tables = torch.full((len(lengths), max(blocks_each) + 1), 10**6, dtype=torch.int32)
    for sequence, count in enumerate(blocks_each):
        tables[sequence, :count] = torch.tensor([free.pop() for _ in range(count)])
    sequences = torch.cat([torch.full((length,), i) for i, length in enumerate(lengths)])
    positions = torch.cat([torch.arange(length) for length in lengths])
    slots = tables[sequences, positions // block_size].long() * block_size + positions % block_size
    keys, values = torch.randn(2, len(positions), kv_heads, head_dim)
    write_tokens(cache, slots, keys, values)
    return Scene(
        q=torch.randn(len(positions), heads, head_dim),
        cache=cache,
        tables=tables,
        sequences=sequences.int(),
        positions=positions.int(),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size"), SHAPES)
def test_equals_the_reference(heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> None:
    s = scene([1, block_size, block_size + 1, 70, 7], heads, kv_heads, head_dim, block_size, dtype)
    reference = paged_attention_reference(s.q, s.cache, s.tables, s.sequences, s.positions, head_dim**-0.5)
    torch.testing.assert_close(s.attend(slice(None)), reference, rtol=1e-5, atol=2e-6)


def test_equals_scaled_dot_product_attention() -> None:
    s = scene([200], 9, 3, 64, 16, torch.float32)
    keys, values = (g(s.cache, s.tables[0, :-1])[:200].transpose(0, 1) for g in (gather_keys, gather_values))
    expected = torch.nn.functional.scaled_dot_product_attention(
        s.q.transpose(0, 1), keys, values, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(s.attend(slice(None)), expected.transpose(0, 1).flatten(1), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size"), SHAPES)
def test_rows_are_independent(
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    assert_rows_independent: Callable[..., None],
) -> None:
    s = scene([3, 50, 1, 90], heads, kv_heads, head_dim, block_size, dtype)
    assert_rows_independent(s.attend, len(s.q))


def test_prefill_in_chunks_equals_decode_token_by_token() -> None:
    s = scene([150, 40], 9, 3, 64, 16, torch.bfloat16)
    whole = s.attend(slice(None))
    decoded = torch.cat([s.attend(slice(row, row + 1)) for row in range(len(s.q))])
    assert torch.equal(decoded, whole)
    mixed = torch.randperm(len(s.q))
    assert torch.equal(s.attend(mixed), whole[mixed])


def test_what_lies_behind_a_sequence_is_not_read() -> None:
    """NaN in the unwritten slots of its last block, and in every other block, changes no bit."""
    s = scene([37], 9, 3, 64, 16, torch.bfloat16)
    before = s.attend(slice(None))
    last_block = int(s.tables[0, 2])
    written = s.tables[0, :3].tolist()
    others = [block for block in range(s.cache.keys.shape[0]) if block not in written]
    s.cache.keys[others] = float("nan")
    s.cache.values[others] = float("nan")
    s.cache.keys[last_block, :, :, 5:] = float("nan")
    s.cache.values[last_block, :, 3:] = float("nan")
    s.cache.values[last_block, :, 2, :, 1] = float("nan")
    assert torch.equal(s.attend(slice(None)), before)


def test_large_scores_do_not_overflow() -> None:
    s = scene([40], 2, 1, 64, 16, torch.float32)
    s.q.mul_(1e4)
    reference = paged_attention_reference(s.q, s.cache, s.tables, s.sequences, s.positions, 0.125)
    torch.testing.assert_close(s.attend(slice(None)), reference, rtol=1e-4, atol=1e-5)


def test_two_threads_on_one_long_row() -> None:
    s = scene([1000], 9, 3, 64, 16, torch.bfloat16)
    last = slice(999, 1000)
    alone = s.attend(last)
    threads.set_num_threads(2)
    for _ in range(20):
        assert torch.equal(s.attend(last), alone)
    threads.set_num_threads(1)
