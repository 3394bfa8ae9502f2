"""Whether a replica takes one more request now; it knows its load and its limits, not the fleet."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.load import Load
from cluster.request import GenerationRequest
from cluster.waiting_room import most_waiting_tokens

MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    reason: str
    retry_after_s: float


def refusal(load: Load, request: GenerationRequest, *, num_requests: int, max_requests: int) -> Refusal | None:
    """None to admit. An engine with nothing to do admits whatever fits its cache; `max_requests` as
    cluster.waiting_room.most_requests has it for it, `num_requests` of background ones or of the
    others, as it is one.
    """
    is_background = request.objective == "background"
    prompt_tokens = len(request.prompt_token_ids)
    waiting_tokens = load.background_prefill_tokens if is_background else load.waiting_prefill_tokens
    limit = most_waiting_tokens(request.objective, load.kv_tokens_capacity)
    if num_requests >= max_requests:
        reason = f"{num_requests} requests run or wait already, the limit is {max_requests}"
    elif waiting_tokens + prompt_tokens > limit:
        reason = f"{waiting_tokens} prompt tokens wait already, {prompt_tokens} more exceed the limit of {limit}"
    else:
        return None
    return Refusal(reason=reason, retry_after_s=_retry_after_s(load))


def _retry_after_s(load: Load) -> float:
    """Time until the queue's prompts are computed and the cache's overflow has been generated, at today's rates."""
    prefill = load.waiting_prefill_tokens
    overflow = load.kv_tokens_used + load.promised_kv_tokens - load.kv_tokens_capacity - prefill
    wait_s = prefill / max(1.0, load.prefill_tokens_per_s) + max(0, overflow) / max(1.0, load.decode_tokens_per_s)
    return min(MAX_RETRY_S, max(MIN_RETRY_S, wait_s))
