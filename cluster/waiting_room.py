"""How many requests a replica admits, by their objective: one rule for engines, routers and the simulator."""

from __future__ import annotations

from cluster.slo import Objective

MAX_WAITING_CAPACITIES = 2
"""Prompt tokens that may wait, in multiples of the cache. Prompts only: most requests set max_tokens far above what
they come to use, and counting it would refuse while the cache stands empty."""
THROUGHPUT_CAPACITIES = 1
BACKGROUND_BATCHES = 2
"""Of the most that run at once: a place that becomes free is taken in the next step."""


def most_requests(objective: Objective, *, max_sequences: int, max_waiting: int) -> int:
    """Running and waiting together, at which one more is refused.

    Requests of a throughput objective fill half of the waiting room, so that they leave room for the others; background
    ones have a room of their own, and neither kind counts the other.
    """
    if objective == "background":
        return BACKGROUND_BATCHES * max_sequences
    return max_sequences + (max_waiting // 2 if objective == "throughput" else max_waiting)


def most_waiting_tokens(objective: Objective, kv_capacity_tokens: int) -> int:
    """Of prompts, one more included; of background ones among themselves."""
    capacities = MAX_WAITING_CAPACITIES if objective == "latency" else THROUGHPUT_CAPACITIES
    return capacities * kv_capacity_tokens
