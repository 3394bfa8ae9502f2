"""Whether a simulated replica takes one more request, by the rules of engine/admission.py; it knows no fleet."""

from __future__ import annotations

from cluster.load import Load
from cluster.prediction import ReplicaLimits
from cluster.slo import Objective
from cluster.waiting_room import most_requests, most_waiting_tokens

MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0


class WaitingRoom:
    """Of a replica, for each objective."""

    def __init__(self, limits: ReplicaLimits, capacity_tokens: int) -> None:
        objectives: tuple[Objective, Objective] = ("latency", "throughput")
        self._most = {
            objective: (
                most_requests(objective, max_sequences=limits.max_sequences, max_waiting=limits.max_waiting),
                most_waiting_tokens(objective, capacity_tokens),
            )
            for objective in objectives
        }

    def admits(self, objective: Objective, prompt_tokens: int, *, waiting_tokens: int, num_requests: int) -> bool:
        """`waiting_tokens`: of prompts, admitted and not computed."""
        requests, tokens = self._most[objective]
        return num_requests < requests and waiting_tokens + prompt_tokens <= tokens


def retry_after_s(load: Load) -> float:
    """When to come again."""
    waiting = load.waiting_prefill_tokens
    overflow = load.kv_tokens_used + load.promised_kv_tokens - load.kv_tokens_capacity - waiting
    wait_s = waiting / max(1.0, load.prefill_tokens_per_s) + max(0, overflow) / max(1.0, load.decode_tokens_per_s)
    return min(MAX_RETRY_S, max(MIN_RETRY_S, wait_s))
