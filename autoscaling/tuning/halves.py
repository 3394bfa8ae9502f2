"""A trace's first half, to tune on, and its second, which the search never sees; and a fleet under either.

Each half begins with a fleet that is warm: the first half's own requests came before it in a circle, what really came
before the second comes before the second. A fleet that begins with one replica of each variant would tell of its start
and not of its settings, and the first half sees nothing of the second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from autoscaling.policy_settings import policy_settings
from autoscaling.simulator.arrivals import Arrival, warmed_up
from autoscaling.simulator.comparison import Experiment
from autoscaling.simulator.runs import Traffic, summarised_run
from autoscaling.tuning.objective import Figures
from autoscaling.tuning.search_space import Settings, with_settings
from cluster.config import AutoscalingSection
from cluster.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    num_requests: int
    duration_s: float
    traffic: Traffic


def halves(whole: Traffic, warm_up_s: float) -> tuple[Half, Half]:
    """By time, classes and rate as in the whole; UserError where one of them is empty."""
    requests = list(whole.arrivals())
    middle_s = requests[-1].at_s / 2
    first = [each for each in requests if each.at_s < middle_s]
    if not first:
        raise UserError(f"tune: {whole.name} has {len(requests)} requests, too few for two halves; give a longer trace")

    def tuned() -> Iterable[Arrival]:
        return warmed_up(first, warm_up_s)

    def held_out() -> Iterable[Arrival]:
        for each in warmed_up(requests, warm_up_s):
            if each.at_s >= middle_s:
                yield replace(each, at_s=each.at_s - middle_s)

    return (
        Half(
            num_requests=len(first),
            duration_s=middle_s,
            traffic=replace(whole, name=f"{whole.name}, first half", arrivals=tuned, warm_up_s=warm_up_s),
        ),
        Half(
            num_requests=len(requests) - len(first),
            duration_s=middle_s,
            traffic=replace(whole, name=f"{whole.name}, second half", arrivals=held_out, warm_up_s=warm_up_s),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedFleet:
    section: AutoscalingSection
    """As the file has it."""
    experiment: Experiment
    """All but the settings and the half."""

    def figures(self, settings: Settings, half: Half) -> Figures:
        """The fleet with these settings on this half, simulated as `quantfleet simulate` does."""
        planned = policy_settings(with_settings(self.section, settings))
        experiment = replace(
            self.experiment,
            description=replace(self.experiment.description, settings=planned),
            arrivals=half.traffic.arrivals,
            warm_up_s=half.traffic.warm_up_s,
        )
        summary = summarised_run("tune", experiment, half.traffic, target=None)
        return Figures(
            attainment=summary.lowest_attainment,
            gpu_hours=summary.gpu_hours,
            cost=summary.cost,
            goodput_per_gpu_hour=summary.goodput_per_gpu_hour,
        )
