"""Profiles measured on the real runner, in a process of their own, once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.accelerators import Accelerator
from cluster.cost_model import CostModel
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.model_shape import ModelShape
from cluster.profile import Profile, StepShape
from cluster.variants import Variant
from engine.checkpoint import ensure_checkpoint
from engine.profile_trials import CPU_TRIALS, GPU_TRIALS, held_out_trials, profile_trials
from engine.profiling import ensure_profile, measured_on, profile_key, profile_path
from engine.trial import Trial

HOST = Accelerator(
    name="cpu-test",
    kind="cpu",
    memory_bytes=4 << 30,
    bandwidth_bytes_per_s=1e10,
    flops={"fp32": 1e11, "bf16": 1e11, "int8": 2e11},
    price_per_hour=0.04,
    cores=2,
)


@pytest.fixture
def small_spec() -> EngineSpec:
    """Of the trials only a few can occur in it, which keeps this test short."""
    return EngineSpec(
        replica_id="bf16-0",
        checkpoint=str(ensure_checkpoint("embedded:smollm2-135m")),
        variant=Variant(name="bf16"),
        kv_capacity_tokens=1024,
        max_context=100,
        token_budget=70,
        max_sequences=5,
        accelerator=HOST,
        share=0.5,
    )


def test_a_trial_is_the_step_it_says() -> None:
    trial = Trial(decodes=2, context=20, chunk=5, chunk_context=16)
    chunks = trial.chunks(16)
    assert [chunk.num_tokens for chunk in chunks] == [1, 1, 5]
    assert [chunk.sequence.num_computed_tokens for chunk in chunks] == [19, 19, 16]
    assert [chunk.sequence.block_table for chunk in chunks] == [[0, 1], [2, 3], [4, 5]]
    assert all(chunk.samples for chunk in chunks)
    assert trial.num_blocks(16) == 6


@pytest.mark.parametrize(("trials", "batches"), [(CPU_TRIALS, {0, 1, 8, 32}), (GPU_TRIALS, {0, 1, 32, 256})])
def test_the_trials_tell_all_coefficients_apart(trials: tuple[Trial, ...], batches: set[int]) -> None:
    assert len(set(trials)) == len(trials)
    assert {trial.decodes for trial in trials[:8]} >= batches
    assert any(trial.chunk_context for trial in trials[:8])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_held_out_steps_are_new_and_lie_between_the_known(small_spec: EngineSpec, device: str) -> None:
    spec = replace(
        small_spec, device=device, max_context=16384, token_budget=8192, max_sequences=256, kv_capacity_tokens=400_000
    )
    known, held_out = profile_trials(spec), held_out_trials(spec, 30)
    assert len(set(held_out)) == 30
    assert not set(held_out) & set(known)
    assert held_out == held_out_trials(spec, 30)
    assert held_out != held_out_trials(spec, 30, seed=1)
    for kind in (
        [trial for trial in held_out if trial.decodes and trial.chunk],
        [trial for trial in held_out if trial.decodes and not trial.chunk],
        [trial for trial in held_out if trial.chunk and not trial.decodes],
    ):
        assert len(kind) == 10
    most_kv = max(trial.decodes * trial.context for trial in known)
    assert all(trial.decodes * trial.context <= most_kv for trial in held_out)


def test_a_profile_is_measured_once_and_kept(small_spec: EngineSpec, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("QUANTFLEET_CACHE", str(tmp_path))
    path = ensure_profile(small_spec)
    assert path == profile_path(small_spec)
    profile = Profile.load(path, profile_key(small_spec))
    assert profile is not None
    assert {point.shape for point in profile.points} == {
        StepShape(decode_sequences=decodes, kv_tokens=64 * decodes, prefill_tokens=chunk)
        for decodes, chunk in ((1, 0), (2, 0), (4, 0), (0, 64), (0, 32), (0, 16), (4, 64))
    }
    assert all(0.0001 < point.step_s < 30 for point in profile.points)
    written = path.stat().st_mtime_ns
    ensure_profile(small_spec)
    assert path.stat().st_mtime_ns == written
    other = replace(small_spec, variant=Variant(name="int8", method="int8"))
    assert profile_path(other) != path
    assert the_model_follows(profile, small_spec)
    others = measured_on(small_spec, [Trial(decodes=3, context=50)])
    assert [point.shape for point in others.points] == [StepShape(decode_sequences=3, kv_tokens=150)]
    assert path.stat().st_mtime_ns == written


def the_model_follows(profile: Profile, spec: EngineSpec) -> bool:
    shape = ModelShape.from_hf_config(Path(spec.checkpoint) / "config.json")
    model = CostModel(shape, spec.variant, HOST, share=spec.share, profile=profile)
    return all(model.step_s(point.shape) == pytest.approx(point.step_s, rel=0.05) for point in profile.points)


def test_what_cannot_be_measured_is_told_in_a_line(small_spec: EngineSpec, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("QUANTFLEET_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"measuring variant bf16 failed: .*/nowhere"):
        ensure_profile(replace(small_spec, checkpoint="/nowhere"))
    with pytest.raises(UserError, match="token_budget 1: too small to measure"):
        ensure_profile(replace(small_spec, token_budget=1, max_context=16))
    with pytest.raises(ValueError, match="names none"):
        profile_key(replace(small_spec, accelerator=None))
