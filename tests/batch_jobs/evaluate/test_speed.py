"""Decode rates at batch 1 and at B_best come from the engine; how fast it is, is no test's business."""

from __future__ import annotations

from batch_jobs.engine_choice import choose_engine
from batch_jobs.evaluate.speed import SPEED_STEPS, Speed, measure_speed, speed_task
from cluster.config import FleetConfig


def test_both_batches_are_timed(config: FleetConfig) -> None:
    choice = choose_engine(config, "nf4")
    task = speed_task(choice, list(range(3, 500)))
    assert task.best_batch >= 1
    assert task.spec.max_sequences == task.best_batch
    assert task.spec.kv_capacity_tokens >= 128 * task.best_batch
    *steps, speed = measure_speed(task)
    assert steps == [None] * SPEED_STEPS
    assert isinstance(speed, Speed)
    assert speed.best_batch == task.best_batch
    assert speed.batch_1 > 0
    assert speed.best > 0
