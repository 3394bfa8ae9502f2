"""The search space: it is the planner's own settings, within what fleet.yaml allows, and holds any default."""

from __future__ import annotations

import pytest

from autoscaling.policy_settings import policy_settings
from autoscaling.tuning.search_space import RANGES, differing, ranges_around, settings_of, with_settings
from cluster.config import AutoscalingSection


def test_each_setting_reaches_the_planner() -> None:
    section = AutoscalingSection()
    for key, value in settings_of(section).items():
        changed = with_settings(section, {key: value / 2})
        assert policy_settings(changed) != policy_settings(section), key


@pytest.mark.parametrize("end", ["low", "high"])
def test_the_ends_of_every_range_are_valid_in_a_fleet_file(end: str) -> None:
    ends = {key: getattr(each, end) for key, each in RANGES.items()}
    section = AutoscalingSection.model_validate(ends)
    assert settings_of(section) == ends


def test_a_default_beyond_a_range_widens_it() -> None:
    settings = {**settings_of(AutoscalingSection()), "hold_s": 7200.0, "hysteresis": 0.0}
    ranges = ranges_around(settings)
    assert all(ranges[key].low <= value <= ranges[key].high for key, value in settings.items())
    assert ranges["level_s"] == RANGES["level_s"]


def test_values_are_rounded_and_stay_within() -> None:
    assert RANGES["headroom"].rounded(0.123456) == 0.123
    assert [RANGES["hold_s"].rounded(value) for value in (15.04, 123.4, 1796.0)] == [15.0, 123.0, 1800.0]
    widened = ranges_around({**settings_of(AutoscalingSection()), "headroom": 0.9996, "hold_s": 2003.0})
    assert widened["headroom"].rounded(0.99955) <= 0.9996
    assert widened["hold_s"].rounded(2002.9) == 2000.0


def test_what_differs() -> None:
    default = settings_of(AutoscalingSection())
    assert differing({**default, "headroom": 0.3}, default) == {"headroom": 0.3}
    assert differing(default, default) == {}
