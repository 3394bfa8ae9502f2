"""The probe's arithmetic, and one on the real engine."""

from pathlib import Path

import pytest

from batch_jobs.batch_probe import ProbedBatch, Work, best_of, candidates, pays, probe, probed
from batch_jobs.batch_tuner import BatchChoice, LengthSample
from batch_jobs.engine_choice import EngineChoice, choose_engine
from cluster.config import FleetConfig
from cluster.profile import Profile, ProfileKey, ProfilePoint, StepShape

WORK = Work(prompt_tokens=40, output_tokens=20)
CHOICE = BatchChoice(batch=8, slice_rows=4, step_s=0.05, arithmetic="because")


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> EngineChoice:
    return choose_engine(FleetConfig.built_in(), "int8")


def test_a_row_is_its_prompt_and_half_its_output() -> None:
    sample = LengthSample(
        num_rows=3, mean_prompt_tokens=40.4, max_prompt_tokens=50, mean_row_bytes=1.0, is_whole_input=True
    )
    assert Work.of(sample, 20) == WORK
    assert WORK.context == 50
    # 20 tokens: 20 steps shared by 4, and a prompt of its own.
    assert WORK.tokens_per_s(4, step_s=0.2, prefill_s=1.0) == pytest.approx(20 / (20 * 0.2 / 4 + 1.0))


def test_candidates_lie_around_the_prediction_and_fit(engine: EngineChoice) -> None:
    assert candidates(CHOICE, engine, WORK, num_rows=10_000) == [4, 6, 8, 11, 16]
    assert candidates(CHOICE, engine, WORK, num_rows=9) == [4, 6, 8, 9]
    assert not pays(engine, WORK, CHOICE, num_rows=20)
    assert pays(engine, WORK, CHOICE, num_rows=10**6)


def test_the_smallest_batch_near_the_best_is_taken() -> None:
    def point(batch: int, measured: float) -> ProbedBatch:
        return ProbedBatch(batch=batch, predicted_tokens_per_s=100.0, measured_tokens_per_s=measured)

    best = best_of([point(4, 80.0), point(8, 96.0), point(16, 100.0)], CHOICE)
    assert (best.batch, best.slice_rows) == (8, 4)
    assert best.arithmetic == (
        "because; probed, tokens/s measured (predicted) with prompts: 4: 80 (100), 8: 96 (100), 16: 100 (100)"
    )


def test_measured_steps_become_rates(engine: EngineChoice) -> None:
    shapes = [StepShape(decode_sequences=4, kv_tokens=200), StepShape(decode_sequences=8, kv_tokens=400)]
    points = [ProfilePoint(shape=shape, step_s=0.1) for shape in shapes]
    points.append(ProfilePoint(shape=StepShape(decode_sequences=0, kv_tokens=0, prefill_tokens=20), step_s=0.5))
    key = ProfileKey(model="m", variant="int8", accelerator="cpu-2", threads=1, versions={})
    found = probed(engine, WORK, [4, 8], Profile(key=key, points=tuple(points), measured_at=""))
    # Of 40 prompt tokens 20 were timed.
    assert [one.measured_tokens_per_s for one in found] == pytest.approx(
        [1 / (0.1 / 4 + 1.0 / 20), 1 / (0.1 / 8 + 1.0 / 20)]
    )


def test_a_probe_of_the_real_engine(engine: EngineChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTFLEET_CACHE", str(tmp_path))
    found = probe(engine, WORK, [1, 2], longest_tokens=60)
    assert [one.batch for one in found] == [1, 2]
    assert all(1 < one.measured_tokens_per_s < 10_000 for one in found)
