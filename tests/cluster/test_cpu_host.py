"""What this host offers, and that a container's limits are respected."""

from __future__ import annotations

import os

import pytest

from cluster.cpu_host import cgroup_cores, measure, usable_cores, usable_memory_bytes


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", None), ("200000 100000\n", 2.0), ("150000 100000", 1.5), ("-1\n 100000\n", None), ("", None)],
)
def test_cpu_quota(text: str, cores: float | None) -> None:
    assert cgroup_cores(text) == cores


def test_affinity_limits_the_cores() -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= usable_cores() <= len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_memory_is_no_more_than_the_host_has() -> None:
    assert 0 < usable_memory_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_measurement_is_of_this_machine() -> None:
    speed = measure(threads=1)
    assert 0.5e9 < speed.bandwidth_bytes_per_s < 500e9
    assert 0.5e9 < speed.fp32_flops < 5e12
