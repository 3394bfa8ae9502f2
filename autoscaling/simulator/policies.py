"""Scaling policies to compare with: a fixed fleet, and Ray Serve's default one; they know no cost model.

OngoingRequests is replica_queue_length_autoscaling_policy of Ray 2.60 with its factors, delays and bounds
(ray/serve/autoscaling_policy.py, _private/autoscaling_state.py). Simplified in its favour: it sees the requests at each
decision, where Ray's replicas record every 6 s and push every 10 s, and requests that wait at the ingress are counted.
With several variants each is a deployment of its own, and requests that wait are counted to each by its part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from autoscaling.fleet_plan import VariantBounds
from autoscaling.scaling import FleetObservation, ScalingDecision

ELAPSED_SLACK_S = 1e-6


class FixedReplicas:
    def __init__(self, replicas: Mapping[str, int]) -> None:
        self._replicas = dict(replicas)

    def decide(self, observation: FleetObservation) -> ScalingDecision:
        return ScalingDecision(replicas=self._replicas, shares={}, reason="fixed")


@dataclass(frozen=True, slots=True, kw_only=True)
class OngoingRequestsSettings:
    """Ray's names and defaults; its default of 2 ongoing requests a replica is far from what a replica here holds."""

    target_ongoing_requests: float = 2.0
    look_back_period_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0


class OngoingRequests:
    """`bounds`: of the variants it scales."""

    def __init__(self, settings: OngoingRequestsSettings, bounds: Mapping[str, VariantBounds]) -> None:
        self._settings = settings
        self._deployments = {name: _Deployment(settings, each) for name, each in bounds.items()}
        self._ongoing = 0

    def decide(self, observation: FleetObservation) -> ScalingDecision:
        self._ongoing += sum(each.arrivals - each.finished - each.refused for each in observation.traffic)
        running = dict.fromkeys(self._deployments, 0)
        at_replicas = dict.fromkeys(self._deployments, 0)
        for load in observation.loads:
            running[load.variant] += 1
            at_replicas[load.variant] += load.decode_sequences + load.waiting_requests
        targets, reasons = {}, []
        for name, deployment in self._deployments.items():
            whole = sum(at_replicas.values())
            part = at_replicas[name] / whole if whole else 1 / len(self._deployments)
            current = running[name] + len(observation.starting.get(name, ()))
            targets[name] = deployment.decide(self._ongoing * part, running[name], current, observation.now_s)
            reasons.append(f"{name}: {deployment.average:.1f} ongoing at {running[name]} -> {targets[name]}")
        goal = f"{self._settings.target_ongoing_requests:g} a replica"
        return ScalingDecision(replicas=targets, shares={}, reason=f"{'; '.join(reasons)} ({goal})")


class _Deployment:
    def __init__(self, settings: OngoingRequestsSettings, bounds: VariantBounds) -> None:
        self.average = 0.0
        self._settings = settings
        self._bounds = bounds
        self._samples: deque[tuple[float, float]] = deque()
        self._wants_more: bool | None = None
        self._wanted_since_s = 0.0

    def decide(self, ongoing: float, running: int, target: int, now_s: float) -> int:
        self._samples.append((now_s, ongoing))
        while self._samples[0][0] < now_s - self._settings.look_back_period_s:
            self._samples.popleft()
        self.average = sum(value for _, value in self._samples) / len(self._samples)
        return max(self._bounds.min, min(self._bounds.max, self._unbounded(running, target, now_s)))

    def _unbounded(self, running: int, target: int, now_s: float) -> int:
        if not running:
            return max(ceil(self._settings.upscaling_factor), target) if self.average > 0 else target
        desired = running * (self.average / (self._settings.target_ongoing_requests * running))
        return self._after_its_delay(max(0, self._scaled(desired, running)), target, now_s)

    def _scaled(self, desired: float, running: int) -> int:
        more = desired - running
        factor = self._settings.upscaling_factor if more > 0 else self._settings.downscaling_factor
        scaled = ceil(running + factor * more)
        stuck = ceil(desired) < running and scaled == running
        return scaled - stuck

    def _after_its_delay(self, desired: int, target: int, now_s: float) -> int:
        if desired == target:
            self._wants_more = None
            return target
        if self._wants_more is not (desired > target):
            self._wants_more, self._wanted_since_s = desired > target, now_s
        delay_s = self._settings.upscale_delay_s if self._wants_more else self._settings.downscale_delay_s
        if now_s - self._wanted_since_s + ELAPSED_SLACK_S < delay_s:
            return target
        self._wants_more = None
        # From 1 to 0 alone: a larger fleet goes down to 1 first.
        return desired if target == 1 or desired > target else max(1, desired)
