"""Launches replayed: the bits of a call for new inputs in the same place, shared memory, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kernels import threads
from kernels.activation import silu_mul
from kernels.checkpoint_layouts import IntegerWeight
from kernels.cpu.recording import Arena, NotRecordableError, Recording
from kernels.dense_matmul import dense_matmul, pack_dense
from kernels.int4_matmul import int4_matmul, pack_int4
from kernels.int8_matmul import int8_matmul, pack_int8, quantize_int8
from kernels.rms_norm import rms_norm

WEIGHT = torch.randn(192, 64, generator=torch.Generator().manual_seed(0))
UP, DOWN = pack_int8(quantize_int8(WEIGHT)), pack_dense(WEIGHT[:64].repeat(1, 2)[:, :96].bfloat16())
SQUARE = pack_dense(WEIGHT[:64])
NORM = torch.linspace(0.5, 1.5, 64)


@pytest.fixture(params=[1, 2])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = threads.num_threads()
    threads.set_num_threads(request.param)
    yield request.param
    threads.set_num_threads(before)


class Block:
    """What a decoder block does, in small: inputs in buffers, a residual that changes in place, tensors that die."""

    def __init__(self, rows: int) -> None:
        self.x, self.residual = torch.zeros(rows, 64), torch.zeros(rows, 64)

    def fill(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x.copy_(torch.randn(self.x.shape, generator=generator))
        self.residual.copy_(torch.randn(self.x.shape, generator=generator))

    def compute(self) -> tuple[Tensor, Tensor]:
        hidden = self.x
        for _ in range(4):
            hidden = dense_matmul(silu_mul(int8_matmul(hidden, UP)), DOWN)
            hidden = rms_norm(hidden, NORM, 1e-5, self.residual)
        return hidden, int8_matmul(hidden, UP)

    def results(self, outputs: tuple[Tensor, ...]) -> list[Tensor]:
        return [tensor.clone() for tensor in (*outputs, self.residual)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("rows", [1, 7, 33])
@pytest.mark.usefixtures("num_threads")
def test_a_replay_gives_the_bits_of_a_call(rows: int) -> None:
    block = Block(rows)
    expected = []
    for seed in range(3):
        block.fill(seed)
        expected.append(block.results(block.compute()))
    block.fill(0)
    recording = Recording(block.compute, Arena(1 << 22))
    assert same(block.results(recording.outputs), expected[0]), "the recorded call counts"
    for seed in (2, 0, 1):
        block.fill(seed)
        recording.replay()
        assert same(block.results(recording.outputs), expected[seed])


@pytest.mark.parametrize("group_of", [torch.arange(64) // 16, torch.arange(64) % 4], ids=["in order", "act-order"])
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.usefixtures("num_threads")
def test_int4_is_replayed_with_its_gather(rows: int, group_of: Tensor) -> None:
    codes = torch.randint(0, 16, (64, 64), dtype=torch.uint8)
    zeros = torch.randint(0, 17, (64, 4), dtype=torch.uint8)
    scales = 0.02 + 0.02 * torch.rand(64, 4)
    packed = pack_int4(IntegerWeight(codes=codes, scales=scales, zeros=zeros, group_of=group_of.int(), bits=4))
    x = torch.randn(rows, 64)

    def compute() -> tuple[Tensor]:
        return (int4_matmul(int4_matmul(x, packed), packed),)

    compute()  # brings scratch memory to its size
    recording = Recording(compute, Arena(1 << 20))
    for _ in range(2):
        x.normal_()
        expected = compute()[0].clone()
        recording.replay()
        assert torch.equal(recording.outputs[0], expected)


def test_recordings_share_an_arena() -> None:
    arena, blocks = Arena(1 << 22), [Block(5), Block(6)]
    recordings = []
    for block in blocks:
        block.fill(9)
        recordings.append(Recording(block.compute, arena))
    for seed, (block, recording) in enumerate(zip(blocks, recordings, strict=True)):
        block.fill(seed)
        expected = block.results(block.compute())
        block.fill(seed)
        recording.replay()
        assert same(block.results(recording.outputs), expected)


def test_a_dead_tensor_leaves_its_place() -> None:
    arena = Arena(1 << 12)
    first, second = arena.empty(4, 16), arena.empty(4, 16)
    place = first.data_ptr()
    view = first[1:]
    del first
    assert arena.empty(4, 16).data_ptr() not in (place, second.data_ptr()), "a view still holds it"
    del view
    assert arena.empty(2, 16).data_ptr() == place
    with pytest.raises(NotRecordableError, match="more than the arena's 4096 bytes"):
        arena.empty(64, 16)


@pytest.mark.parametrize(
    "step", [lambda x: x * 2, lambda x: x.add_(1), lambda x: x.t().contiguous(), lambda x: torch.zeros(3)]
)
def test_what_a_replay_would_miss_is_refused(step: object) -> None:
    x = torch.ones(16, 64)
    with pytest.raises(NotRecordableError, match="is no launch"):
        Recording(lambda: (step(dense_matmul(x, SQUARE)),), Arena(1 << 20))  # type: ignore[operator]
    assert torch.equal(dense_matmul(x, SQUARE), dense_matmul(x, SQUARE)), "launches go on as before"


def test_another_number_of_threads_makes_it_stale() -> None:
    block = Block(3)
    recording = Recording(block.compute, Arena(1 << 20))
    assert not recording.is_stale
    before = threads.num_threads()
    threads.set_num_threads(before + 1)
    assert recording.is_stale
    threads.set_num_threads(before)
