"""The settings in fleet.yaml as the planner's: one reading for production, simulator and tuning; it decides none."""

from __future__ import annotations

from autoscaling.demand import DemandSettings
from autoscaling.kv_aware import KvAwareSettings
from cluster.config import AutoscalingSection


def policy_settings(section: AutoscalingSection) -> KvAwareSettings:
    return KvAwareSettings(
        headroom=section.headroom,
        hysteresis=section.hysteresis,
        swap_gain=section.swap_gain,
        interval_s=section.interval_s,
        demand=DemandSettings(
            level_s=section.level_s, trend_s=section.trend_s, hold_s=section.hold_s, idle_s=section.idle_s
        ),
    )
