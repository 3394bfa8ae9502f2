"""A pass of prompts padded to a graph's size is the pass of the prompts alone; graphs themselves need a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.variants import Variant
from engine.gpu.prompt_graphs import MOST_SEQUENCES
from engine.gpu.runner import GpuRunner
from engine.sequence import ScheduledChunk
from engine.trial import trial_sequence
from tests.engine.gpu.conftest import write_checkpoint
from tests.engine.gpu.greedy import spec_of

VARIANTS = (Variant(name="fp32", dtype="fp32"), Variant(name="int8", method="int8"))
TOLERANCE = {"fp32": 1e-5, "int8": 0.04}
"""A product of more rows is another kernel's, which rounds to bf16 elsewhere."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("prompt_graphs") / "tiny")


def started(folder: Path, device: str, variant: Variant) -> GpuRunner:
    runner = GpuRunner(spec_of(folder, device, variant, token_budget=64, kv_capacity_tokens=256))
    runner.allocate(16)
    return runner


def chunks_of(*lengths: int) -> list[ScheduledChunk]:
    """The first chunk of a sequence each; a block holds 16 tokens."""
    found = []
    for slot, length in enumerate(lengths):
        sequence = trial_sequence(num_tokens=length, num_computed_tokens=0, block_table=[2 * slot, 2 * slot + 1])
        sequence.slot = slot
        sequence.token_ids[:] = [(7 * slot + 3 * index) % 40 for index in range(length)]
        found.append(ScheduledChunk.of(sequence, length))
    return found


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("lengths", [(1,), (16,), (5, 9, 1), (20, 3)])
def test_padding_changes_nothing(folder: Path, device: str, variant: Variant, lengths: tuple[int, ...]) -> None:
    chunks = chunks_of(*lengths)
    alone, padded = started(folder, device, variant), started(folder, device, variant)
    with torch.inference_mode():
        alone._state.enter(chunks)
        expected = alone._prompts_hidden(chunks)
        graphs = padded._prompt_graphs
        padded._state.enter(chunks)
        size = next(size for size in graphs.sizes if size >= sum(lengths))
        graphs.stage(chunks, size)
        found = graphs.run(size)[: sum(lengths)]
    tolerance = TOLERANCE[variant.name]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    for one, other in zip(alone._kv_cache, padded._kv_cache, strict=True):
        torch.testing.assert_close(one.keys, other.keys, rtol=tolerance, atol=tolerance)
        assert torch.equal(one.values == 0, other.values == 0), "padding is kept nowhere"


def test_what_no_graph_holds_is_launched_kernel_by_kernel(folder: Path, device: str) -> None:
    graphs = started(folder, device, VARIANTS[0])._prompt_graphs
    assert graphs.size_for(chunks_of(5)) is None, "nothing is captured"
    graphs._graphs = dict.fromkeys(graphs.sizes)
    assert graphs.size_for(chunks_of(5)) == 16
    assert graphs.size_for(chunks_of(16, 16)) == 32
    assert graphs.size_for([replace_length(chunks_of(5)[0], 65)]) is None
    assert graphs.size_for(chunks_of(*[1] * (MOST_SEQUENCES + 1))) is None


def replace_length(chunk: ScheduledChunk, num_tokens: int) -> ScheduledChunk:
    return chunk._replace(num_tokens=num_tokens)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["none", "gptq", "nf4", "int8", "fp8"])
def test_a_graph_gives_what_its_launches_give(method: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "wider", hidden_size=64, intermediate_size=128)  # nf4's groups of 64
    spec = spec_of(folder, "cuda", Variant(name=method, method=method), token_budget=64, kv_capacity_tokens=256)
    runner = GpuRunner(replace(spec, load_format="dummy" if method == "gptq" else spec.load_format))
    runner.allocate(16)
    chunks = chunks_of(20, 3)
    graphs = runner._prompt_graphs
    with torch.inference_mode():
        runner._state.enter(chunks)
        graphs.stage(chunks, 32)
        graphs.step(32)
        expected = graphs._hidden[:23].clone()
        graphs.capture(torch.cuda.graph_pool_handle(), [32])
        graphs._hidden.fill_(float("nan"))
        graphs.stage(chunks, 32)
        assert torch.equal(graphs.run(32)[:23], expected)
