"""A decode step's inputs from the state that lies on the device: tokens, lengths, new blocks; it knows no sequence.

One program for all rows: it runs once a step, and a step has 256 rows at most.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.sampling import DeviceSampling


def prepare_decode(
    staging: Tensor,
    *,
    last_token: Tensor,
    lengths: Tensor,
    block_tables: Tensor,
    history: Tensor,
    floats: Tensor,
    integers: Tensor,
    token_ids: Tensor,
    seq_lens: Tensor,
    sampling: DeviceSampling,
    num_rows: int,
    block_size: int,
) -> None:
    """State arrays have S + 1 slots, the last for rows that only fill up the batch: they are read and never written.

    staging [2, S] int32: the slot of each row, and the block that it was given (-1: none). last_token [S + 1] int64,
    lengths [S + 1] int32, block_tables [S + 1, blocks] and history [S + 1, max_context] int32, floats [S + 1, 3] fp32
    (temperature, top_p, min_p) and integers [S + 1, 2] int64 (seed, top_k) are the state. Row r of token_ids int64,
    seq_lens int32 (0 for a row that fills up) and of `sampling` is written for r < num_rows; each active slot's length
    grows by its new token, which also enters the history.
    """
    _prepare_decode[(1,)](
        staging,
        last_token,
        lengths,
        block_tables,
        history,
        floats,
        integers,
        token_ids,
        seq_lens,
        sampling.temperature,
        sampling.top_p,
        sampling.min_p,
        sampling.seed,
        sampling.top_k,
        sampling.position,
        num_rows,
        len(last_token) - 1,
        block_tables.shape[1],
        history.shape[1],
        BLOCK_SIZE=block_size,
        ROWS=triton.next_power_of_2(staging.shape[1]),
    )


@triton.jit(do_not_specialize=["num_rows"])
def _prepare_decode(
    staging,
    last_token,
    lengths,
    block_tables,
    history,
    floats,
    integers,
    token_ids,
    seq_lens,
    temperature,
    top_p,
    min_p,
    seed,
    top_k,
    position,
    num_rows,
    pad_slot,
    max_blocks,
    max_context,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.arange(0, ROWS)
    inside = row < num_rows
    slot = tl.load(staging + row, mask=inside, other=0)
    new_block = tl.load(staging + pad_slot + row, mask=inside, other=-1)
    active = inside & (slot != pad_slot)
    slot = slot.to(tl.int64)
    length = tl.load(lengths + slot, mask=active, other=0)
    token = tl.load(last_token + slot, mask=inside, other=0)
    tl.store(block_tables + slot * max_blocks + length // BLOCK_SIZE, new_block, mask=active & (new_block >= 0))
    tl.store(history + slot * max_context + length, token.to(tl.int32), mask=active)
    after = length + 1
    tl.store(lengths + slot, after, mask=active)
    tl.store(seq_lens + row, tl.where(active, after, 0), mask=inside)
    tl.store(token_ids + row, token, mask=inside)
    tl.store(position + row, after, mask=inside)
    tl.store(temperature + row, tl.load(floats + slot * 3, mask=inside, other=0.0), mask=inside)
    tl.store(top_p + row, tl.load(floats + slot * 3 + 1, mask=inside, other=1.0), mask=inside)
    tl.store(min_p + row, tl.load(floats + slot * 3 + 2, mask=inside, other=0.0), mask=inside)
    tl.store(seed + row, tl.load(integers + slot * 2, mask=inside, other=0), mask=inside)
    tl.store(top_k + row, tl.load(integers + slot * 2 + 1, mask=inside, other=0).to(tl.int32), mask=inside)
