"""Held-out steps against a profile: the errors' arithmetic, the tables, the picture."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from batch_jobs.profiling.check import check
from batch_jobs.profiling.picture import draw
from batch_jobs.profiling.specs import Measured, specs_of
from batch_jobs.profiling.tables import check_table, errors_table, profiles_table
from cluster.config import FleetConfig
from cluster.errors import UserError
from cluster.profile import Profile, ProfileKey, ProfilePoint, StepShape
from engine.profile_trials import held_out_trials, profile_trials
from engine.step_meter import step_shape
from engine.trial import Trial

CONFIG = FleetConfig.of({"model": {"source": "embedded:smollm2-135m"}, "engine": {"max_context": 1024}})


@pytest.fixture
def measured(checkpoint: Path) -> Measured:
    """As if every step took twice what the roofline says."""
    shape, (spec, *_) = specs_of(CONFIG, ("bf16",), made_up=False)
    spec = replace(spec, token_budget=512)
    blank = Measured(spec=spec, shape=shape, profile=profile([]))
    roofline = blank.model(None)
    points = [
        ProfilePoint(shape=shape, step_s=2 * roofline.step_s(shape)) for shape in map(shape_of, profile_trials(spec))
    ]
    return replace(blank, profile=profile(points))


def profile(points: list[ProfilePoint]) -> Profile:
    key = ProfileKey(model="m", variant="bf16", accelerator="cpu-2", threads=1, versions={}, share=0.5)
    return Profile(key=key, points=tuple(points), measured_at="2026-11-23T00:00:00+00:00")


def shape_of(trial: Trial) -> StepShape:
    return step_shape(trial.chunks(16))


def test_errors_are_relative_to_what_was_measured(measured: Measured) -> None:
    roofline = measured.model(None)
    shapes = [shape_of(trial) for trial in held_out_trials(measured.spec, 30)]
    held_out = profile([ProfilePoint(shape=shape, step_s=2 * roofline.step_s(shape)) for shape in shapes])
    found = check(measured, held_out)
    assert [each.shape for each in found.predictions] == shapes
    assert found.median_error < 0.05  # what is twice the roofline everywhere is a roofline, and fitted as one
    assert found.median_roofline_error == pytest.approx(0.5)
    slower = profile([replace(point, step_s=2 * point.step_s) for point in held_out.points])
    assert check(measured, slower).median_error == pytest.approx(0.5, abs=0.03)
    assert found.worst_error >= found.median_error


def test_tables_and_picture(measured: Measured, tmp_path: Path) -> None:
    best = measured.model(measured.profile).best_batch(512, kv_capacity_tokens=20_000, max_sequences=64)
    held_out = profile([ProfilePoint(shape=StepShape(decode_sequences=3, kv_tokens=150), step_s=0.02)])
    console = Console(width=150, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    console.print(profiles_table([measured], [best]))
    console.print(check_table(check(measured, held_out)))
    console.print(errors_table([check(measured, held_out)]))
    text = console.export_text()
    assert f"{best.tokens_per_s:,.0f}" in text
    assert "20.00 ms" in text
    draw([measured, measured], [best, best], 512, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_measured_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"--variant int9: .*int8"):
        specs_of(CONFIG, ("int9",), made_up=False)
    with pytest.raises(UserError, match="--dummy: made-up weights are for GPUs"):
        specs_of(CONFIG, (), made_up=True)
