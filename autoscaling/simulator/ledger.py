"""Ledger: what became of every request of a simulated run, added up by SLO class; it decides nothing."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

from autoscaling.bursts import BurstMeter
from autoscaling.simulator.arrivals import Arrival
from cluster.slo import SloLimits, meets_floor

ARRIVALS_BIN_S = 1.0


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """On its way through the fleet."""

    request_id: str
    arrival: Arrival
    slo: SloLimits
    tried: frozenset[str] = frozenset()
    """Replicas that refused it."""
    first_token_s: float = 0.0

    @property
    def deadline_s(self) -> float:
        """How long it may be queued."""
        return self.arrival.at_s + (self.slo.deadline_s or 0.0)


@dataclass(slots=True)
class ClassLedger:
    """Of one class. Offered is what arrived: met + missed + refused."""

    offered: int = 0
    met: int = 0
    refused: int = 0
    too_long: int = 0
    """Of those refused: longer than the context."""
    below_floor: int = 0
    """Answered by a variant whose quality is below the class's floor."""
    missed_ttft: int = 0
    missed_tpot: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    """Of answers."""
    ttft_s: array[float] = field(default_factory=lambda: array("d"))
    tpot_s: array[float] = field(default_factory=lambda: array("d"))
    answered_by: Counter[str] = field(default_factory=Counter)
    """Variant."""


@dataclass(slots=True)
class TrafficWindow:
    """Of one class since the last scaling decision."""

    arrivals: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    finished: int = 0
    refused: int = 0


class Ledger:
    def __init__(self, classes: dict[str, SloLimits], counted_from_s: float = 0.0) -> None:
        """Requests that arrive before `counted_from_s` are demand, and nothing else."""
        self.classes = {name: ClassLedger() for name in classes}
        self.windows = {name: TrafficWindow() for name in classes}
        self.bursts = {name: BurstMeter() for name in classes}
        self.arrivals_by_second: Counter[int] = Counter()
        """Seconds from the first that counts."""
        self.longest_tokens = 0
        """Of the requests refused for their length."""
        self._counted_from_s = counted_from_s

    def arrived(self, arrival: Arrival) -> None:
        window = self.windows[arrival.slo_class]
        window.arrivals += 1
        window.prompt_tokens += arrival.prompt_tokens
        self.bursts[arrival.slo_class].arrived(arrival.at_s)
        if arrival.at_s >= self._counted_from_s:
            entry = self.classes[arrival.slo_class]
            entry.offered += 1
            entry.prompt_tokens += arrival.prompt_tokens
            self.arrivals_by_second[int((arrival.at_s - self._counted_from_s) / ARRIVALS_BIN_S)] += 1

    def refused(self, arrival: Arrival) -> None:
        self.windows[arrival.slo_class].refused += 1
        if arrival.at_s >= self._counted_from_s:
            self.classes[arrival.slo_class].refused += 1

    def too_long(self, arrival: Arrival) -> None:
        self.refused(arrival)
        if arrival.at_s >= self._counted_from_s:
            self.classes[arrival.slo_class].too_long += 1
            self.longest_tokens = max(self.longest_tokens, arrival.prompt_tokens + arrival.output_tokens)

    def answered(self, request: SimulatedRequest, variant: str, quality: float | None, now_s: float) -> None:
        """Its last token came."""
        arrival, slo = request.arrival, request.slo
        window = self.windows[arrival.slo_class]
        window.finished += 1
        window.output_tokens += arrival.output_tokens
        if arrival.at_s < self._counted_from_s:
            return
        entry = self.classes[arrival.slo_class]
        ttft_s = request.first_token_s - arrival.at_s
        further = arrival.output_tokens - 1
        tpot_s = (now_s - request.first_token_s) / further if further else None
        missed_ttft = slo.ttft_ms is not None and ttft_s * 1e3 > slo.ttft_ms
        missed_tpot = tpot_s is not None and slo.tpot_ms is not None and tpot_s * 1e3 > slo.tpot_ms
        below_floor = not meets_floor(quality, slo.min_quality)
        entry.missed_ttft += missed_ttft
        entry.missed_tpot += missed_tpot
        entry.below_floor += below_floor
        entry.met += not (missed_ttft or missed_tpot or below_floor)
        entry.output_tokens += arrival.output_tokens
        entry.ttft_s.append(ttft_s)
        if tpot_s is not None:
            entry.tpot_s.append(tpot_s)
        entry.answered_by[variant] += 1

    def next_windows(self) -> dict[str, TrafficWindow]:
        """Those until now; new ones begin."""
        ended, self.windows = self.windows, {name: TrafficWindow() for name in self.windows}
        return ended
