"""All logits of a window on the GPU's path are the reference path's, chunk by chunk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from cluster.variants import Variant
from engine.gpu.runner import GpuRunner
from engine.runner import Runner
from engine.sequence import ScheduledChunk
from engine.trial import trial_sequence
from tests.engine.gpu.conftest import write_checkpoint
from tests.engine.gpu.greedy import spec_of


def test_the_rows_asked_for_are_the_references(tmp_path: Path, device: str) -> None:
    spec = spec_of(
        write_checkpoint(tmp_path / "tiny"),
        device,
        Variant(name="fp32", dtype="fp32"),
        kv_capacity_tokens=64,
        max_sequences=2,
        token_budget=16,
    )
    runner = GpuRunner(spec)
    runner.allocate(4)
    found, expected = [], []
    for scorer, rows in ((runner, found), (Runner(replace(spec, device="cpu")), expected)):
        sequence = trial_sequence(num_tokens=24, num_computed_tokens=0, block_table=[2, 0])
        for num_tokens, first_row in ((14, 14), (9, 3)):
            chunk = ScheduledChunk.of(sequence, num_tokens)
            rows += list(scorer.prompt_logits(chunk, first_row))
            sequence.num_computed_tokens = chunk.end
    assert sum(len(piece) for piece in found) == 6
    torch.testing.assert_close(torch.cat(found).cpu(), torch.cat(expected), atol=1e-3, rtol=1e-3)
