"""A policy made of a file in Serve's controller: when it is made, and what a file that cannot be read costs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from cluster.config import FleetConfig
from cluster.cost_model import StepShape
from cluster.profile import Profile, ProfilePoint
from engine.profiling import profile_key, profile_path
from serve_app.app import application
from serve_app.blueprint import Blueprint
from serve_app.file_policy import FilePolicy

FLEET: dict[str, Any] = {
    "model": {"name": "small", "source": "embedded:smollm2-135m"},
    "variants": {"bf16": {"method": "none"}},
    "engine": {"max_context": 1024, "num_threads": 1},
}


def test_a_file_that_cannot_be_read_costs_scaling_alone_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = FilePolicy(config=str(tmp_path / "fleet.yaml"))
    assert policy({}) == ({}, {})
    assert caplog.records == []
    with caplog.at_level(logging.ERROR, "ray.serve"):
        logging.getLogger("ray.serve").addHandler(caplog.handler)
        try:
            assert policy({"a deployment": None}) == ({}, {})
            assert policy({"a deployment": None}) == ({}, {})
        finally:
            logging.getLogger("ray.serve").removeHandler(caplog.handler)
    told = {record.getMessage() for record in caplog.records}
    assert len(told) == 1
    assert "fleet.yaml: no scaling policy can be made of it" in told.pop()


def test_profiles_on_disk_are_taken_and_none_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blueprint = Blueprint.of(FleetConfig.of(FLEET))
    monkeypatch.setenv("QUANTFLEET_CACHE", str(tmp_path))
    assert blueprint.with_known_profiles().variants["bf16"].profile is None
    spec = blueprint.variants["bf16"].spec
    shape = StepShape(decode_sequences=1, kv_tokens=16, prefill_tokens=0)
    profile = Profile(
        key=profile_key(spec), points=(ProfilePoint(shape=shape, step_s=0.01),), measured_at="2026-11-23T12:00:00+00:00"
    )
    profile.save(profile_path(spec))
    assert blueprint.with_known_profiles().variants["bf16"].profile == profile


@pytest.mark.parametrize(("resource", "asked"), [(None, {}), ("H100-80G", {"H100-80G": 0.001})])
def test_replicas_go_where_the_accelerator_is(resource: str | None, asked: dict[str, float]) -> None:
    section = {"name": "cpu"} if resource is None else {"name": "cpu", "resource": resource}
    ingress = application(Blueprint.of(FleetConfig.of(FLEET | {"accelerator": section})))._bound_deployment
    replica = ingress.init_args[1]["bf16"]._bound_deployment
    assert (replica.ray_actor_options.get("resources") or {}) == asked
