"""The benchmark's fleets are what it says; its times are nobody's assertion."""

from pathlib import Path

import pytest

from autoscaling.bench import control
from autoscaling.bench.control import decisions, routes, widened
from autoscaling.simulator.fleet_setup import described
from cluster.config import FleetConfig

FLEET = Path(__file__).parents[3] / "infra" / "fleets" / "llama-3.1-8b-h100.yaml"


def test_routes_and_decisions_of_a_wide_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FLEET.parents[2])
    monkeypatch.setattr(control, "ROUTES", 40)
    monkeypatch.setattr(control, "DECISIONS", 3)
    fleet = described(FleetConfig.load(FLEET), None, only=None, profiles=None, cold_start_s={})
    wide = widened(fleet)
    assert len(wide.variants) == control.NUM_VARIANTS
    assert all(len(terms.profile.points) >= 32 for terms in wide.variants.values() if terms.profile)
    route, decision = routes(wide, 64), decisions(wide, 64)
    assert (route.num_replicas, route.bound_s) == (64, control.ROUTE_BOUND_S)
    assert 0 < route.median_s < 1
    assert 0 < decision.median_s < 60
