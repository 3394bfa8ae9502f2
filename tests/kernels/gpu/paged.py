"""A filled paged cache with shuffled blocks and stable rows, as the tests of attention on a GPU want it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.gpu.kv_cache import PagedKv, allocate_paged_kv

UNUSED = 2**30
"""A block that no kernel may follow: in the tables past each sequence's end, and in rows of nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paged:
    kv: PagedKv
    block_tables: Tensor
    rows: Tensor

    def copy_of_kv(self) -> PagedKv:
        return PagedKv(keys=self.kv.keys.clone(), values=self.kv.values.clone())


def paged(
    lengths: list[int], *, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype, device: str
) -> Paged:
    """Random keys and values in every slot, those of no sequence too."""
    blocks = [-(-length // block_size) for length in lengths]
    num_blocks = sum(blocks) + 3
    kv = allocate_paged_kv(
        num_blocks=num_blocks,
        layers=1,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
        device=device,
    )[0]
    kv.keys.normal_()
    kv.values.normal_()
    free = torch.randperm(num_blocks).int()
    tables = torch.full((len(lengths) + 2, max(blocks) + 2), UNUSED, dtype=torch.int32)
    rows = torch.randperm(len(tables))[: len(lengths)].int()
    start = 0
    for row, count in zip(rows.tolist(), blocks, strict=True):
        tables[row, :count] = free[start : start + count]
        start += count
    return Paged(kv=kv, block_tables=tables.to(device), rows=rows.to(device))
