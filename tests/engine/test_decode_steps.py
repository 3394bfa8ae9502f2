"""Replayed decode steps give the bits of plain ones, and models that cannot be recorded run all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.variants import Variant
from engine.runner import Runner
from tests.engine.stepping import VARIANTS, Stepper, spec_of


@pytest.mark.parametrize("variant", VARIANTS[:3], ids=lambda variant: variant.name)
def test_replayed_steps_are_the_plain_ones(variant: Variant, smollm2: Path) -> None:
    """Batch sizes change from step to step, as sequences come and go."""
    stepper = Stepper(Runner(spec_of(smollm2, variant, num_threads=2)))
    runner = stepper.runner
    assert runner._decode_steps is not None
    sequences = [stepper.sequence(range(100 + 7 * i, 130 + 9 * i)) for i in range(3)]
    stepper.step(sequences)
    logits: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    steps, run = runner._decode_steps, runner._decode_steps.run
    for replayed, record in ((False, False), (True, True)):
        steps._recordable = record
        for sequence in sequences:
            del sequence.token_ids[sequence.num_prompt_tokens + 1 :]
            sequence.num_computed_tokens = sequence.num_prompt_tokens
        steps.run = lambda batch, kept=logits[replayed]: _keep(run(batch), kept)  # type: ignore[method-assign]
        for size in (3, 3, 3, 2, 2, 1, 2, 3, 3):
            stepper.step(sequences[:size])
    assert set(steps._recordings) == {1, 2, 3}
    assert all(torch.equal(*pair) for pair in zip(logits[True], logits[False], strict=True))


def _keep(outputs: tuple[torch.Tensor, torch.Tensor], kept: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    kept.append(outputs[1].clone())
    return outputs


def test_a_model_that_cannot_be_recorded_runs_plainly(
    tiny_checkpoints: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """250 tokens: the head's result is cut from 256 columns, a copy that no launch makes."""
    stepper = Stepper(Runner(spec_of(tiny_checkpoints["llama"])))
    assert len(stepper.generate(stepper.sequence([1, 2, 3]), 6)) == 6
    assert [record.message for record in caplog.records if "not recorded" in record.message] != []
    assert stepper.runner._decode_steps is not None
    assert stepper.runner._decode_steps._recordings == {}
