"""The options --trace, --generate, --classes, --rate and --warm-up as arrivals; it simulates and sends nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from autoscaling.simulator.arrivals import Arrival, TracedRequest, arrivals, parse_shares, warmed_up
from autoscaling.simulator.generated import generate as generated
from autoscaling.simulator.traces import read_trace
from cluster.config import FleetConfig
from cluster.errors import UserError


def check_numbers(rate: float, warm_up_s: float) -> None:
    if not 0 < rate < float("inf"):
        raise UserError(f"--rate: {rate:g} is not above 0; 2 makes twice as many requests a second")
    if not 0 <= warm_up_s < float("inf"):
        raise UserError(f"--warm-up: {warm_up_s:g} is not a time of 0 s or more; write 300")


def requested(trace: Path | None, generate: str | None, seed: int) -> Callable[[], Iterable[TracedRequest]]:
    """Read or checked now, so that a mistake is told before any work; given out as often as asked."""
    if (trace is None) == (generate is None):
        raise UserError("requests: give either --trace FILE or --generate SPEC, such as poisson:rate=5,duration_s=3600")
    if trace is not None:
        requests = read_trace(trace)
        return lambda: requests
    assert generate is not None
    spec = generate
    generated(spec, seed)
    return lambda: generated(spec, seed)


def classed(
    requests: Callable[[], Iterable[TracedRequest]],
    fleet: FleetConfig,
    classes: str,
    *,
    seed: int,
    rate: float,
    warm_up_s: float,
) -> Callable[[], Iterable[Arrival]]:
    """The same arrivals each time, those of the warm-up first."""
    shares = parse_shares(classes, fleet.online_classes)
    return lambda: warmed_up(arrivals(requests(), shares, seed=seed, rate=rate), warm_up_s)
