"""The list of metrics keeps Prometheus' conventions."""

from __future__ import annotations

import re

import pytest

from cluster.metric_catalogue import CATALOGUE, Metric

METRICS = list(CATALOGUE)


def test_names_are_unique() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS) > 20


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_keeps_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"quantfleet_[a-z]+(_[a-z]+)*", metric.name)
    assert not metric.name.endswith(("_total", "_bucket", "_count", "_sum")), "Ray and Prometheus add these"
    assert not re.search(r"_(ms|milliseconds|mb|gb|percent)(_|$)", metric.name), "base units only"
    assert metric.help.endswith(".")
    assert not {"application", "deployment", "replica", "route"} & set(metric.labels), "Ray Serve's own"
    assert bool(metric.boundaries) == (metric.kind == "histogram")
    assert list(metric.boundaries) == sorted(set(metric.boundaries))
