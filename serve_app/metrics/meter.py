"""RayMeter: the catalogue's metrics as Ray's instruments, which its agents export; it knows no request and no load."""

from __future__ import annotations

from typing import Any, Protocol

from cluster.config import FleetConfig
from cluster.metric_catalogue import Metric


class Meter(Protocol):
    def begin(self, metric: Metric, **labels: str) -> None:
        """A counter at 0, so that its rate is known from its first event on."""

    def add(self, metric: Metric, value: float, **labels: str) -> None: ...

    def set(self, metric: Metric, value: float, **labels: str) -> None: ...

    def observe(self, metric: Metric, value: float, **labels: str) -> None: ...


class NoMeter:
    """For a fleet with `metrics: {enabled: false}`."""

    def begin(self, metric: Metric, **labels: str) -> None:
        pass

    add = set = observe = lambda self, metric, value, **labels: None


class RayMeter:
    """In a process of Ray Serve, whose application, deployment and replica become labels."""

    def __init__(self) -> None:
        self._instruments: dict[Metric, Any] = {}

    def begin(self, metric: Metric, **labels: str) -> None:
        # inc() takes no 0, though Ray's recorder does, and a series that is not there yet has no rate.
        self._of(metric)._record(0.0, tags=labels)

    def add(self, metric: Metric, value: float, **labels: str) -> None:
        if value > 0:
            self._of(metric).inc(value, tags=labels)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self._of(metric).set(value, tags=labels)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        self._of(metric).observe(value, tags=labels)

    def _of(self, metric: Metric) -> Any:
        found = self._instruments.get(metric)
        if found is None:
            found = self._instruments[metric] = _instrument(metric)
        return found


def meter_of(config: FleetConfig) -> Meter:
    return RayMeter() if config.metrics.enabled else NoMeter()


def _instrument(metric: Metric) -> Any:
    from ray.serve import metrics

    if metric.kind == "counter":
        return metrics.Counter(metric.name, description=metric.help, tag_keys=metric.labels)
    if metric.kind == "gauge":
        return metrics.Gauge(metric.name, description=metric.help, tag_keys=metric.labels)
    return metrics.Histogram(
        metric.name, description=metric.help, boundaries=list(metric.boundaries), tag_keys=metric.labels
    )
