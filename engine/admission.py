"""Whether a replica takes one more request now; it knows its load and its limits, not the fleet."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.load import Load
from cluster.request import GenerationRequest

MAX_PROMISED_CAPACITIES = 4
"""KV tokens promised to admitted requests, in multiples of the cache: a queue longer than that waits for minutes."""

MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    reason: str
    retry_after_s: float


def refusal(load: Load, request: GenerationRequest, max_waiting: int) -> Refusal | None:
    """None to admit. An engine with nothing to do admits whatever fits its cache."""
    needed = len(request.prompt_token_ids) + request.sampling.max_tokens
    promised = load.kv_tokens_used + load.promised_kv_tokens
    limit = MAX_PROMISED_CAPACITIES * load.kv_tokens_capacity
    if load.waiting_requests >= max_waiting:
        reason = f"{load.waiting_requests} requests wait already (limit {max_waiting})"
    elif promised > 0 and promised + needed > limit:
        reason = f"{promised} KV tokens are promised already, {needed} more exceed {limit}"
    else:
        return None
    return Refusal(reason=reason, retry_after_s=_retry_after_s(load))


def _retry_after_s(load: Load) -> float:
    """Time until the queue's prompts are computed and the cache's overflow has been generated, at today's rates."""
    prefill = load.waiting_prefill_tokens
    overflow = load.kv_tokens_used + load.promised_kv_tokens - load.kv_tokens_capacity - prefill
    wait_s = prefill / max(1.0, load.prefill_tokens_per_s) + max(0, overflow) / max(1.0, load.decode_tokens_per_s)
    return min(MAX_RETRY_S, max(MIN_RETRY_S, wait_s))
