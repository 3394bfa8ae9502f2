"""Rank: the order in which an engine computes its requests, the same in the simulator; it knows no engine, no clock.

The smaller rank runs first, the largest is preempted. Background work comes last, whatever its priority. A client's
`priority` counts next; then requests of a latency objective come before those of a throughput objective, however many
of these wait; then the earliest deadline comes first (EDF; Liu & Layland 1973), and of equal deadlines the earlier
arrival. A rank never changes, so whoever has the smallest always advances, and every request comes to have it among
those of its priority and objective: one that has no deadline is due UNHURRIED_S after its arrival. Only a latency load
that leaves an engine no token keeps throughput requests waiting, and a smaller `priority` those of a larger one, for as
long as it lasts.
"""

from __future__ import annotations

from cluster.slo import Objective, SloLimits

Rank = tuple[bool, int, bool, float, int]
"""Whether it is background work, priority, whether of a throughput objective, when it is due in seconds of the engine's
clock, number of admission."""

UNHURRIED_S = 600.0


def rank(*, priority: int, objective: Objective, deadline_s: float | None, arrived_s: float, number: int) -> Rank:
    """`deadline_s` after `arrived_s`; `number` is unique in an engine and grows."""
    due_s = arrived_s + (UNHURRIED_S if deadline_s is None else deadline_s)
    return (objective == "background", priority, objective == "throughput", due_s, number)


def deadline_s(slo: SloLimits, waited_s: float) -> float | None:
    """What is left after so long of the time to the first token, or of the class's deadline where that has no limit.

    Below 0 for one that is late already; None without either.
    """
    limit_s = slo.deadline_s if slo.ttft_ms is None else slo.ttft_ms / 1e3
    return None if limit_s is None else limit_s - waited_s
