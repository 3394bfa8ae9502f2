"""What a scaling policy is told and what it answers: one form for production and the simulator; it decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cluster.load import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTraffic:
    """Of one SLO class since the last decision, counted at arrival, refused requests included."""

    slo_class: str
    arrivals: int
    window_s: float
    prompt_tokens: int
    """Of all arrivals together."""
    output_tokens: int
    """Of all that finished."""
    finished: int
    refused: int
    waiting: int = 0
    """Now, in ingresses: requests that no replica has."""
    burst: int = 0
    """The most that arrived within bursts.BURST_S, of late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetObservation:
    now_s: float
    loads: tuple[Load, ...]
    """Of running replicas, as last heard."""
    starting: Mapping[str, tuple[float, ...]]
    """Variant -> when each starting replica was asked for."""
    draining: Mapping[str, int]
    traffic: tuple[ClassTraffic, ...]
    began_s: float | None = None
    """Since when the fleet is watched; None: for as long as it matters."""
    named_s: Mapping[str, float] = field(default_factory=dict)
    """Variant -> when a request that names it last arrived or waited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLoad:
    """What a decision counts on: a class on the variant planned for it, in full replicas, without headroom."""

    slo_class: str
    variant: str
    requests_per_s: float
    rate_replicas: float
    """For what its tokens take of an engine, within its limits."""
    kv_replicas: float
    """For what its sequences hold of a KV cache."""
    bound: str
    """Of autoscaling.sustained: what ends the batch there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingDecision:
    replicas: Mapping[str, int]
    """The target of each variant."""
    shares: Mapping[str, Mapping[str, float]]
    """Class -> variant -> the share of its traffic that routers should send there; empty: no preference."""
    reason: str
    """The arithmetic, in a line or a few."""
    loads: tuple[PlannedLoad, ...] = ()
    """What the arithmetic is of."""


class ScalingPolicy(Protocol):
    def decide(self, observation: FleetObservation) -> ScalingDecision: ...
