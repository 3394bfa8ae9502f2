"""Choice and Refusal: what the router answers; it weighs nothing."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.assessment import Candidate
from cluster.prediction import Prediction
from cluster.slo import Fallback


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    variant: str
    replica_id: str
    reason: str
    """One line of ASCII, fit for a header."""
    predicted_ttft_ms: float
    predicted_tpot_ms: float
    predicted_cost_s: float = 0.0
    """Seconds of the replica's share of the accelerator."""
    degraded: bool = False
    """A limit or the quality floor is predicted to be missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    reason: str
    retry_after_s: float
    fallback: Fallback
    """`queue`: choosing again after retry_after_s may help, until the class's deadline; `reject`: not now."""


def choice_of(variant: str, replica_id: str, prediction: Prediction, reason: str, degraded: bool = False) -> Choice:
    return Choice(
        variant=variant,
        replica_id=replica_id,
        reason=f"{variant}: {reason}",
        predicted_ttft_ms=prediction.ttft_s * 1e3,
        predicted_tpot_ms=prediction.tpot_s * 1e3,
        predicted_cost_s=prediction.cost_s,
        degraded=degraded,
    )


def choice_among(candidate: Candidate, reason: str, degraded: bool = False) -> Choice:
    return choice_of(candidate.variant, candidate.replica_id, candidate.prediction, reason, degraded)
