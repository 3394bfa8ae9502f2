"""Predicted against measured step times, on steps that the profile does not hold; it starts no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from batch_jobs.profiling.specs import Measured
from cluster.profile import Profile, StepShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    shape: StepShape
    measured_s: float
    predicted_s: float
    roofline_s: float
    """Without the profile."""

    @property
    def error(self) -> float:
        """Relative, positive where the step took less than predicted."""
        return self.predicted_s / self.measured_s - 1

    @property
    def roofline_error(self) -> float:
        return self.roofline_s / self.measured_s - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    variant: str
    predictions: Sequence[Prediction]

    @property
    def median_error(self) -> float:
        return median(abs(each.error) for each in self.predictions)

    @property
    def worst_error(self) -> float:
        return max(abs(each.error) for each in self.predictions)

    @property
    def median_roofline_error(self) -> float:
        return median(abs(each.roofline_error) for each in self.predictions)


def check(measured: Measured, held_out: Profile) -> Check:
    fitted, roofline = measured.model(measured.profile), measured.model(None)
    predictions = [
        Prediction(
            shape=point.shape,
            measured_s=point.step_s,
            predicted_s=fitted.step_s(point.shape),
            roofline_s=roofline.step_s(point.shape),
        )
        for point in held_out.points
    ]
    return Check(variant=measured.name, predictions=predictions)
