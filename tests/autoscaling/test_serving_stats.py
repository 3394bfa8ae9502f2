"""What goes through Serve as numbers comes out as it went in, and counters are differences."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from autoscaling.serving_stats import (
    AWAITED,
    DRAINING,
    NAMED,
    TrafficCounters,
    load_of,
    load_stats,
    of_variants,
    since,
    traffic_of,
)
from cluster.load import Load

LOAD = Load(
    replica_id="a",
    variant="int8",
    measured_at_s=1.8e9,
    kv_tokens_capacity=8192,
    kv_tokens_used=160,
    decode_sequences=3,
    waiting_requests=2,
    step_time_ratio=1.25,
    decode_tokens_per_s=88.5,
    rss_bytes=600_000_000,
)


def test_a_load_comes_back_as_it_was() -> None:
    stats = load_stats(LOAD)
    assert all(type(value) is float for value in stats.values())
    assert load_of(stats, "a", "int8") == LOAD
    assert {type(getattr(load_of(stats, "a", "int8"), field.name)) for field in fields(Load)} == {str, int, float}
    del stats["kv_tokens_used"]
    with pytest.raises(KeyError):
        load_of(stats, "a", "int8")


def test_every_field_of_a_load_is_carried() -> None:
    """One that is not would come back as its default."""
    numbered = replace(LOAD, **{field.name: 7 for field in fields(Load) if field.type != "str"})
    assert load_of(load_stats(numbered), "a", "int8") == numbered


def test_counters_are_told_by_class_and_variant_and_differenced() -> None:
    counters = TrafficCounters(["standard", "exact"], ["bf16", "int8"], "standard")
    counters.arrived("exact", 100, None)
    before = counters.stats(waiting=0, queued={}, draining={})
    counters.arrived("exact", 40, "int8")
    counters.arrived("request", 60, None)  # limits of its own, made from the default class's
    counters.refused("request")
    counters.finished("exact", 12)
    queued = {("exact", "int8"): 2, ("request", None): 1, ("standard", None): 4}
    after = counters.stats(waiting=9, queued=queued, draining={"int8": 1, "bf16": 0})
    growth = since(before, after)
    exact, standard = (traffic_of(growth, name, 2.0, waiting=1, burst=3) for name in ("exact", "standard"))
    assert (exact.arrivals, exact.prompt_tokens, exact.finished, exact.output_tokens) == (1, 40, 1, 12)
    assert (standard.arrivals, standard.prompt_tokens, standard.refused, standard.window_s) == (1, 60, 1, 2.0)
    assert of_variants(growth, NAMED, ["bf16", "int8"]) == {"bf16": 0, "int8": 1}
    assert of_variants(growth, DRAINING, ["bf16", "int8"]) == {"bf16": 0, "int8": 1}
    assert (after["waiting"], after["queued/exact"], after["queued/standard"]) == (9, 2, 5)
    assert of_variants(after, AWAITED, ["bf16", "int8"]) == {"bf16": 0, "int8": 2}
    assert counters.stats(waiting=0, queued={}, draining={})["queued/exact"] == 0


def test_a_burst_is_told_while_it_is_of_use() -> None:
    now_s = [100.0]
    counters = TrafficCounters(["standard", "exact"], ["bf16"], "standard", clock=lambda: now_s[0])
    for _ in range(30):
        counters.arrived("exact", 10, None)
    now_s[0] += 5
    counters.arrived("exact", 10, None)
    stats = counters.stats(waiting=0, queued={}, draining={})
    assert (stats["burst/exact"], stats["burst/standard"]) == (30, 0)
    now_s[0] += 60
    assert counters.stats(waiting=0, queued={}, draining={})["burst/exact"] == 0
