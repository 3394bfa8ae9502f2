"""Whether a simulated replica takes one more request, by the rules of engine/admission.py; it knows no fleet."""

from __future__ import annotations

from cluster.load import Load

MAX_WAITING_CAPACITIES = 2
MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0


def admits(
    prompt_tokens: int, waiting_tokens: int, capacity_tokens: int, *, num_requests: int, max_requests: int
) -> bool:
    """`waiting_tokens`: of prompts, admitted and not computed."""
    return num_requests < max_requests and waiting_tokens + prompt_tokens <= MAX_WAITING_CAPACITIES * capacity_tokens


def retry_after_s(load: Load) -> float:
    """When to come again."""
    waiting = load.waiting_prefill_tokens
    overflow = load.kv_tokens_used + load.promised_kv_tokens - load.kv_tokens_capacity - waiting
    wait_s = waiting / max(1.0, load.prefill_tokens_per_s) + max(0, overflow) / max(1.0, load.decode_tokens_per_s)
    return min(MAX_RETRY_S, max(MIN_RETRY_S, wait_s))
