"""OngoingRequests: Ray Serve's own functions give the same targets on the same averages."""

from __future__ import annotations

import random
from typing import Any

import pytest
from ray.serve.autoscaling_policy import _apply_delay_logic, _apply_scaling_factors
from ray.serve.config import AutoscalingConfig

from autoscaling.fleet_plan import VariantBounds
from autoscaling.scaling import ClassTraffic, FleetObservation
from autoscaling.simulator.policies import FixedReplicas, OngoingRequests, OngoingRequestsSettings
from cluster.load import Load


def seen(now_s: float, running: int, starting: int, ongoing_change: int) -> FleetObservation:
    traffic = ClassTraffic(
        slo_class="standard",
        arrivals=max(0, ongoing_change),
        window_s=1.0,
        prompt_tokens=0,
        output_tokens=0,
        finished=max(0, -ongoing_change),
        refused=0,
    )
    loads = tuple(
        Load(replica_id=str(index), variant="bf16", measured_at_s=0, kv_tokens_capacity=1, kv_tokens_used=0)
        for index in range(running)
    )
    waiting = {"bf16": (0.0,) * starting} if starting else {}
    return FleetObservation(now_s=now_s, loads=loads, starting=waiting, draining={}, traffic=(traffic,))


class Ray:
    """The decision of Ray's controller for one deployment, on the mean of the look-back period."""

    def __init__(self, config: AutoscalingConfig) -> None:
        self._config = config
        self._state: dict[str, Any] = {}

    def decide(self, average: float, running: int, target: int, now_s: float) -> int:
        desired = running * (average / (self._config.get_target_ongoing_requests() * running))
        scaled = _apply_scaling_factors(desired, running, self._config)
        decided, self._state = _apply_delay_logic(max(0, scaled), target, self._config, self._state, now_s)
        return max(self._config.min_replicas, min(self._config.max_replicas, decided))


@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.6, 0.3)])
@pytest.mark.parametrize("seed", range(6))
def test_the_same_targets_as_ray(seed: int, factors: tuple[float, float]) -> None:
    rng = random.Random(seed)
    up, down = factors
    settings = OngoingRequestsSettings(
        target_ongoing_requests=8.0,
        upscale_delay_s=rng.choice([5.0, 30.0]),
        downscale_delay_s=60.0,
        upscaling_factor=up,
        downscaling_factor=down,
    )
    config = AutoscalingConfig(
        min_replicas=1,
        max_replicas=20,
        target_ongoing_requests=8.0,
        upscale_delay_s=settings.upscale_delay_s,
        downscale_delay_s=60.0,
        upscaling_factor=up,
        downscaling_factor=down,
    )
    policy, ray = OngoingRequests(settings, {"bf16": VariantBounds(min=1, max=20)}), Ray(config)
    target, running, ongoing, samples, targets = 1, 1, 0, [], set()
    for second in range(600):
        drift = 3 if second % 200 < 90 else -3
        change = max(-ongoing, drift + rng.randrange(-8, 9))
        ongoing += change
        samples.append(ongoing)
        recent = samples[-31:]
        expected = ray.decide(sum(recent) / len(recent), running, target, float(second))
        found = policy.decide(seen(float(second), running, target - running, change)).replicas["bf16"]
        assert found == expected, second
        target = found
        targets.add(found)
        running = min(target, running + (second % 7 == 0)) if target > running else target
    assert len(targets) > 3


def test_from_nothing_it_starts_as_soon_as_something_waits() -> None:
    policy = OngoingRequests(OngoingRequestsSettings(), {"bf16": VariantBounds(min=0, max=4)})
    assert policy.decide(seen(0.0, 0, 0, 0)).replicas == {"bf16": 0}
    assert policy.decide(seen(1.0, 0, 0, 3)).replicas == {"bf16": 1}


def test_fixed() -> None:
    assert FixedReplicas({"bf16": 3}).decide(seen(0.0, 1, 0, 9)).replicas == {"bf16": 3}
