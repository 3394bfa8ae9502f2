"""Chunks of prompts as flat arrays: positions, slots of the cache, and where each chunk begins and ends."""

from __future__ import annotations

import pytest
import torch

from cluster.request import GenerationRequest, SamplingParams
from engine.gpu.prompt_batch import PromptBatch
from engine.sequence import ScheduledChunk, Sequence

BLOCK = 4


def a_chunk(slot: int, num_tokens: int, start: int, count: int, blocks: list[int]) -> ScheduledChunk:
    token_ids = [100 * slot + index for index in range(num_tokens)]
    sequence = Sequence(
        request=GenerationRequest(request_id=str(slot), prompt_token_ids=token_ids, sampling=SamplingParams()),
        token_ids=token_ids,
        num_prompt_tokens=num_tokens,
        seed=0,
        arrival=slot,
        block_table=blocks,
        num_computed_tokens=start,
        slot=slot,
    )
    return ScheduledChunk.of(sequence, count)


def batch_of(chunks: list[ScheduledChunk], device: str) -> PromptBatch:
    return PromptBatch.of(chunks, torch.zeros(4, 8, dtype=torch.int32, device=device), BLOCK)


def test_a_chunk_within_a_sequence_knows_its_places(device: str) -> None:
    """Tokens 3 to 8: the last place of block 5, the whole of block 0, the first of block 7."""
    batch = batch_of([a_chunk(2, 11, 3, 6, [5, 0, 7])], device)
    context = batch.context
    assert batch.token_ids.tolist() == [203, 204, 205, 206, 207, 208]
    assert context.positions.tolist() == [3, 4, 5, 6, 7, 8]
    assert context.slots.tolist() == [23, 0, 1, 2, 3, 28]
    assert context.rows.tolist() == [2]
    assert context.query_starts.tolist() == [0, 6]
    assert context.context_lens.tolist() == [3]
    assert context.longest == 6


def test_chunks_lie_one_after_another(device: str) -> None:
    """A whole prompt, a single token in the middle of another, and a chunk that begins at a block's edge."""
    chunks = [a_chunk(1, 5, 0, 5, [6, 2]), a_chunk(3, 9, 6, 1, [4, 1, 3]), a_chunk(0, 8, 4, 4, [9, 8])]
    batch = batch_of(chunks, device)
    context = batch.context
    assert batch.token_ids.tolist() == [100, 101, 102, 103, 104, 306, 4, 5, 6, 7]
    assert context.positions.tolist() == [0, 1, 2, 3, 4, 6, 4, 5, 6, 7]
    assert context.slots.tolist() == [24, 25, 26, 27, 8, 6, 32, 33, 34, 35]
    assert context.rows.tolist() == [1, 3, 0]
    assert context.query_starts.tolist() == [0, 5, 6, 10]
    assert context.context_lens.tolist() == [0, 6, 4]
    assert context.longest == 5


def test_arrays_are_as_the_kernels_take_them(device: str) -> None:
    batch = batch_of([a_chunk(0, 3, 0, 3, [1])], device)
    context = batch.context
    arrays = (batch.token_ids, context.positions, context.slots, context.rows, context.query_starts)
    for array in (*arrays, context.context_lens):
        assert array.dtype == torch.int32
        assert array.device.type == torch.device(device).type


@pytest.mark.parametrize("lengths", [(1,), (5, 2), (3, 3, 3), (16, 1, 7, 2, 9)])
def test_every_array_begins_at_whole_16_bytes(lengths: tuple[int, ...], device: str) -> None:
    """Else Triton compiles another kernel in the middle of a run."""
    context = batch_of([a_chunk(slot, n, 0, n, [*range(4)]) for slot, n in enumerate(lengths)], device).context
    for array in (context.positions, context.slots, context.rows, context.query_starts, context.context_lens):
        assert array.data_ptr() % 16 == 0
