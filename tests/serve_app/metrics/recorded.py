"""A meter that keeps what it is told, by series."""

from __future__ import annotations

from collections import defaultdict

from cluster.metric_catalogue import Metric

Series = tuple[str, tuple[tuple[str, str], ...]]


class RecordingMeter:
    def __init__(self) -> None:
        self.values: dict[Series, float] = {}
        self.observed: defaultdict[Series, list[float]] = defaultdict(list)

    def begin(self, metric: Metric, **labels: str) -> None:
        assert metric.kind == "counter"
        self.values.setdefault(self._series(metric, labels), 0.0)

    def add(self, metric: Metric, value: float, **labels: str) -> None:
        assert metric.kind == "counter"
        assert value >= 0
        self.values[self._series(metric, labels)] += value  # KeyError: it was not begun

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        assert metric.kind == "gauge"
        self.values[self._series(metric, labels)] = value

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        assert metric.kind == "histogram"
        self.observed[self._series(metric, labels)].append(value)

    def _series(self, metric: Metric, labels: dict[str, str]) -> Series:
        assert set(labels) == set(metric.labels), metric.name
        return metric.name, tuple(sorted(labels.items()))
