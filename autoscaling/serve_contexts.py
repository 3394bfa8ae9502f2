"""What FleetPolicy reads of Ray Serve's contexts, as protocols, and the reports in them; it imports no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from autoscaling.serving_stats import Stats


class ReplicaName(Protocol):
    """ray.serve._private.common.ReplicaID."""

    @property
    def unique_id(self) -> str: ...


class TimedValue(Protocol):
    """ray.serve._private.common.TimeStampedValue."""

    @property
    def timestamp(self) -> float: ...

    @property
    def value(self) -> float: ...


class ServingContext(Protocol):
    """ray.serve.config.AutoscalingContext."""

    @property
    def deployment_name(self) -> str: ...

    @property
    def current_num_replicas(self) -> int:
        """Running ones."""

    @property
    def target_num_replicas(self) -> int: ...

    @property
    def running_replicas(self) -> Sequence[ReplicaName]: ...

    @property
    def current_time(self) -> float | None:
        """Unix time, seconds."""

    @property
    def raw_metrics(self) -> Mapping[str, Mapping[ReplicaName, Sequence[TimedValue]]] | None:
        """By name, each running replica's last values; the aggregated ones are means of half a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one ingress or replica last said; `at_s` is Unix time on its host."""

    at_s: float
    stats: Stats


def reports(context: ServingContext) -> dict[str, Report]:
    """By replica, the newest value of everything it told; Serve's own metrics are among it."""
    stats: dict[str, Stats] = {}
    at_s: dict[str, float] = {}
    for name, series in (context.raw_metrics or {}).items():
        for replica, values in series.items():
            if values:
                last, key = values[-1], replica.unique_id
                stats.setdefault(key, {})[name] = last.value
                at_s[key] = max(at_s.get(key, 0.0), last.timestamp)
    return {key: Report(at_s=at_s[key], stats=stats[key]) for key in stats}
