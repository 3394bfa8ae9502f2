"""The state that the device keeps by slot: a decode step's inputs against a plain model of them, and which chunks are
decodes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from cluster.request import GenerationRequest, SamplingParams
from engine.gpu.device_state import DecodeBatch, DeviceState
from engine.sequence import ScheduledChunk, Sequence

BLOCK = 4
SLOTS = 3


@pytest.fixture
def state(device: str) -> DeviceState:
    return DeviceState(max_sequences=SLOTS, max_context=32, block_size=BLOCK, device=device)


def a_sequence(slot: int, num_prompt: int, blocks: list[int], **sampling: object) -> Sequence:
    prompt = [100 * (slot + 1) + index for index in range(num_prompt)]
    params = SamplingParams(**sampling)  # type: ignore[arg-type]
    return Sequence(
        request=GenerationRequest(request_id=f"{slot}-{num_prompt}", prompt_token_ids=prompt, sampling=params),
        token_ids=list(prompt),
        num_prompt_tokens=num_prompt,
        seed=40 + slot,
        arrival=0,
        block_table=blocks,
        slot=slot,
    )


def schedule(sequence: Sequence, num_tokens: int) -> ScheduledChunk:
    """The chunk, and the sequence as the scheduler leaves it behind a launched step."""
    chunk = ScheduledChunk.of(sequence, num_tokens)
    sequence.num_computed_tokens = chunk.end
    sequence.num_pending_tokens += chunk.samples
    return chunk


def read(sequence: Sequence, token: int) -> None:
    """The host learns what an earlier step drew."""
    sequence.token_ids.append(token)
    sequence.num_pending_tokens -= 1


def draw(state: DeviceState, slots: list[int], tokens: list[int]) -> None:
    state.keep(torch.tensor(slots, device=state.device), torch.tensor(tokens, device=state.device))


def decode(state: DeviceState, chunks: list[ScheduledChunk], num_rows: int) -> DecodeBatch:
    staging = torch.zeros(2, SLOTS, dtype=torch.int32)
    state.stage_decodes(chunks, num_rows, staging.numpy())
    state.staging.copy_(staging)
    return state.prepare(num_rows)


@dataclass(slots=True, kw_only=True)
class PlainSlot:
    """What the device should hold of one sequence."""

    tokens: list[int]
    blocks: list[int]
    drawn: int = 0
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0


def assert_holds(state: DeviceState, slot: int, plain: PlainSlot) -> None:
    assert int(state.lengths[slot]) == len(plain.tokens)
    assert state.history[slot, : len(plain.tokens)].tolist() == plain.tokens
    assert state.block_tables[slot, : len(plain.blocks)].tolist() == plain.blocks
    assert int(state.last_token[slot]) == plain.drawn


def assert_row(batch: DecodeBatch, row: int, slot: int, plain: PlainSlot) -> None:
    """Of a step that computes the token drawn last: its length counts that token."""
    assert int(batch.rows[row]) == slot
    assert int(batch.token_ids[row]) == plain.tokens[-1]
    assert int(batch.seq_lens[row]) == len(plain.tokens)
    sampling = batch.sampling
    assert int(sampling.position[row]) == len(plain.tokens)
    assert int(sampling.seed[row]) == plain.seed
    assert int(sampling.top_k[row]) == plain.sampling.top_k
    for name in ("temperature", "top_p", "min_p"):
        assert float(getattr(sampling, name)[row]) == pytest.approx(getattr(plain.sampling, name))


def test_decode_steps_follow_a_plain_model(state: DeviceState) -> None:
    """Two sequences and a row that fills up, over steps in which each takes a block at another moment, the last token
    unread by the host all the while."""
    one = a_sequence(2, 6, [7, 3], temperature=0.5, top_p=0.9, min_p=0.1, top_k=11)
    two = a_sequence(0, 4, [5], temperature=0.0)
    sequences = {2: one, 0: two}
    state.enter([schedule(one, 6), schedule(two, 4)])
    draw(state, [2, 0], [901, 902])
    plain = {
        slot: PlainSlot(
            tokens=list(sequence.token_ids),
            blocks=list(sequence.block_table),
            drawn=drawn,
            sampling=sequence.request.sampling,
            seed=sequence.seed,
        )
        for (slot, sequence), drawn in zip(sequences.items(), (901, 902), strict=True)
    }
    before_pad = [tensor[state.pad_slot].clone() for tensor in (state.lengths, state.history, state.block_tables)]
    free = iter([9, 1, 8, 2])
    blocks_taken = []
    for step in range(6):
        for slot, sequence in sequences.items():
            if sequence.num_tokens > len(sequence.block_table) * BLOCK:
                sequence.block_table.append(next(free))
                plain[slot].blocks.append(sequence.block_table[-1])
                blocks_taken.append((step, slot))
        chunks = [schedule(one, 1), schedule(two, 1)]
        assert all(state.has_last_token_of(chunk) for chunk in chunks)
        batch = decode(state, chunks, 3)
        for row, slot in enumerate((2, 0)):
            plain[slot].tokens.append(plain[slot].drawn)
            assert_row(batch, row, slot, plain[slot])
            assert_holds(state, slot, plain[slot])
        assert int(batch.rows[2]) == state.pad_slot
        assert int(batch.seq_lens[2]) == 0
        drawn = [910 + step, 920 + step]
        draw(state, [2, 0, state.pad_slot], [*drawn, 77])
        for slot, token in zip((2, 0), drawn, strict=True):
            plain[slot].drawn = token
    assert blocks_taken == [(0, 0), (2, 2), (4, 0)]
    after_pad = [tensor[state.pad_slot] for tensor in (state.lengths, state.history, state.block_tables)]
    assert all(torch.equal(before, after) for before, after in zip(before_pad, after_pad, strict=True))


def test_rows_beyond_the_batch_are_left_alone(state: DeviceState) -> None:
    sequence = a_sequence(1, 3, [4])
    state.enter([schedule(sequence, 3)])
    draw(state, [1], [55])
    state.batch.token_ids.fill_(-7)
    batch = decode(state, [schedule(sequence, 1)], 1)
    assert batch.token_ids.tolist() == [55]
    assert state.batch.token_ids.tolist() == [55, -7, -7]


def test_chunks_of_one_prompt_add_up(state: DeviceState) -> None:
    """All blocks are there from the first chunk on; the second adds its tokens alone."""
    sequence = a_sequence(1, 7, [6, 2])
    state.enter([schedule(sequence, 5)])
    assert_holds(state, 1, PlainSlot(tokens=sequence.token_ids[:5], blocks=[6, 2]))
    state.enter([schedule(sequence, 2)])
    assert_holds(state, 1, PlainSlot(tokens=sequence.token_ids, blocks=[6, 2]))


def test_a_cached_prefix_is_history_too(state: DeviceState) -> None:
    """Its tokens are computed already, but penalties count them."""
    sequence = a_sequence(0, 9, [3, 4, 5])
    sequence.num_computed_tokens = 8
    state.enter([schedule(sequence, 1)])
    assert_holds(state, 0, PlainSlot(tokens=sequence.token_ids, blocks=[3, 4, 5]))


def test_the_last_token_of_a_prompt_that_comes_alone_is_no_decode(state: DeviceState) -> None:
    sequence = a_sequence(0, 5, [1, 2])
    state.enter([schedule(sequence, 4)])
    last = ScheduledChunk.of(sequence, 1)
    assert last.samples
    assert not state.has_last_token_of(last)
    state.enter([schedule(sequence, 1)])
    assert state.has_last_token_of(ScheduledChunk.of(sequence, 1))


def test_an_unknown_sequence_is_no_decode(state: DeviceState) -> None:
    sequence = a_sequence(0, 5, [1, 2])
    sequence.num_computed_tokens = 4
    assert not state.has_last_token_of(ScheduledChunk.of(sequence, 1))


def test_after_a_preemption_all_is_told_again(state: DeviceState) -> None:
    sequence = a_sequence(1, 3, [4])
    state.enter([schedule(sequence, 3)])
    draw(state, [1], [55])
    decode(state, [schedule(sequence, 1)], 1)
    draw(state, [1], [56])
    read(sequence, 55)
    read(sequence, 56)
    sequence.num_preemptions, sequence.num_computed_tokens, sequence.block_table = 1, 0, [8, 9]
    # Its one-token chunk at the very position where the token drawn last would go:
    sequence.num_computed_tokens = 4
    resumed = ScheduledChunk.of(sequence, 1)
    assert not state.has_last_token_of(resumed)
    state.enter([schedule(sequence, 1)])
    assert_holds(state, 1, PlainSlot(tokens=[*sequence.token_ids], blocks=[8, 9], drawn=56))
    draw(state, [1], [57])
    chunk = schedule(sequence, 1)
    assert state.has_last_token_of(chunk)
    batch = decode(state, [chunk], 1)
    assert batch.token_ids.tolist() == [57]
    assert batch.seq_lens.tolist() == [6]


def test_a_slot_of_another_sequence_gives_nothing_away(state: DeviceState) -> None:
    """The new one is shorter, and at the place where the old one would have decoded next."""
    old = a_sequence(1, 10, [4, 5, 6], temperature=0.3, top_k=9)
    state.enter([schedule(old, 10)])
    draw(state, [1], [55])
    new = a_sequence(1, 11, [7, 8, 9], temperature=0.8)
    new.num_computed_tokens = 10
    assert not state.has_last_token_of(ScheduledChunk.of(new, 1))
    new.num_computed_tokens, new.token_ids = 0, new.token_ids[:3]
    new.num_prompt_tokens, new.block_table, new.seed = 3, [7], 99
    state.enter([schedule(new, 3)])
    assert_holds(state, 1, PlainSlot(tokens=new.token_ids, blocks=[7], drawn=55))
    draw(state, [1], [60])
    plain = PlainSlot(tokens=[*new.token_ids, 60], blocks=[7], sampling=new.request.sampling, seed=99)
    batch = decode(state, [schedule(new, 1)], 1)
    assert_row(batch, 0, 1, plain)


def test_a_chunk_between_decodes_keeps_the_others(state: DeviceState) -> None:
    one, two = a_sequence(0, 3, [1]), a_sequence(1, 6, [2, 3])
    state.enter([schedule(one, 3)])
    draw(state, [0], [50])
    state.enter([schedule(two, 4)])
    batch = decode(state, [schedule(one, 1)], 2)
    assert batch.token_ids.tolist()[0] == 50
    assert_holds(state, 1, PlainSlot(tokens=two.token_ids[:4], blocks=[2, 3]))
    assert not state.has_last_token_of(ScheduledChunk.of(two, 1))
