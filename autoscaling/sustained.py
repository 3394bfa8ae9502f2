"""What one replica holds for as long as one likes within its limits, and which bound ends it; it knows no fleet.

In the steady state of r requests a second with I prompt and O output tokens each, B sequences decode at a time (Little:
B = r O TPOT), a step of theirs takes s(B), and prompt tokens take m seconds each of the time between the steps:

    TPOT(B) = s(B) + B I m / O            r(B) = B / (O s(B) + B I m)

which is r I / prefill_max + r O / decode_max = 1 with prefill_max = 1 / m and decode_max = B / s(B): both share one
accelerator, so the shares add. r rises with B; KV, sequences, TPOT or TTFT end it, and where none does, the rate.
TTFT: prompts queue for one server with service time S = I m'; P(wait > t) = rho exp(-2 (1 - rho) t / (S (1 + cv^2)))
(Kingman's heavy-traffic tail), taken at 1 in 100.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Literal

from cluster.cost_model import CostModel, StepShape
from cluster.prediction import ReplicaLimits

SustainedBound = Literal["KV", "sequences", "TPOT", "TTFT", "rate"]

LATE_SHARE = 0.01
"""Of requests that may pass the TTFT limit: an attainment of 99 %."""
PROMPT_VARIATION = 1.0
"""cv^2 of prompt lengths; 1.0 and 1.9 in Azure's conversation and code traces of 2023."""
BISECTIONS = 20
LEAST_SHARE = 0.01
"""Of the rate of one sequence after another: a replica that may be busy for so little of the time is of no use."""
SATURATED = 0.97
"""A rate this near to that of a batch twice as large is ended by the arithmetic and not by what ends the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The mean request, and the tightest limits among those that are served together."""

    prompt_tokens: float
    output_tokens: float
    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaCapability:
    """One replica of a variant, as the planner counts with it."""

    model: CostModel
    kv_capacity_tokens: int
    block_size: int
    limits: ReplicaLimits
    cold_start_s: float
    """From asking for it to its first token."""
    step_time_ratio: float = 1.0
    """Measured over predicted, where replicas run."""

    @property
    def variant(self) -> str:
        return self.model.variant.name

    @property
    def price_per_s(self) -> float:
        """Of its share; hardware without a price counts by the share alone."""
        return self.model.price_per_s or self.model.share


@dataclass(frozen=True, slots=True, kw_only=True)
class Sustained:
    """The most that one replica holds."""

    rate_per_s: float
    """Requests a second; 0 where not even one alone is within the limits."""
    batch: int
    tpot_s: float
    bound: SustainedBound
    prefill_tokens_per_s: float
    decode_tokens_per_s: float

    def arithmetic(self, mix: Mix) -> str:
        return (
            f"{self.rate_per_s:.2f} requests/s: {mix.prompt_tokens:.0f} / {self.prefill_tokens_per_s:.0f} prefill"
            f" + {mix.output_tokens:.0f} / {self.decode_tokens_per_s:.0f} decode tokens/s at batch {self.batch},"
            f" TPOT {self.tpot_s * 1e3:.1f} ms, bound by {self.bound}"
        )


def held_tokens(replica: ReplicaCapability, prompt_tokens: float, output_tokens: float) -> float:
    """Slots of the KV cache that a sequence holds on average over its life, the half-empty last block included."""
    return prompt_tokens + output_tokens / 2 + replica.block_size / 2


def sustained(replica: ReplicaCapability, mix: Mix) -> Sustained:
    """By bisection over the batch: every bound is monotone in it."""
    return _sustained(replica, _rounded(mix.prompt_tokens), _rounded(mix.output_tokens), mix.ttft_s, mix.tpot_s)


@dataclass(frozen=True, slots=True)
class _Point:
    """The steady state at one batch."""

    batch: int
    rate_per_s: float
    tpot_s: float
    late_ttft_s: float
    prefill_s_per_token: float
    decode_s: float
    service_s: float
    """Of a prompt."""


@lru_cache(maxsize=4096)
def _sustained(
    replica: ReplicaCapability, prompt_tokens: float, output_tokens: float, ttft_s: float | None, tpot_s: float | None
) -> Sustained:
    held = held_tokens(replica, prompt_tokens, output_tokens)
    by_kv = int(replica.kv_capacity_tokens / held)
    most = max(1, min(by_kv, replica.limits.max_sequences))

    def at(batch: int) -> _Point:
        return _point(replica, batch, held, prompt_tokens, output_tokens)

    def missed(point: _Point) -> SustainedBound | None:
        if tpot_s is not None and point.tpot_s > tpot_s:
            return "TPOT"
        return "TTFT" if ttft_s is not None and point.late_ttft_s > ttft_s else None

    first = at(1)
    if by_kv < 1 or missed(first) == "TPOT":
        return _found(first, 0.0, missed(first) or "KV")
    if ttft_s is not None and missed(first) == "TTFT":
        return _found(first, _rate_within(ttft_s, first), "TTFT")
    low, high = 1, most + 1  # low keeps the limits, high does not or is out of reach
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if missed(at(middle)) is None else (low, middle)
    best = at(low)
    bound: SustainedBound = "KV" if by_kv <= replica.limits.max_sequences else "sequences"
    if low < most:
        bound = missed(at(low + 1)) or bound
    elif best.rate_per_s >= SATURATED * at(2 * low).rate_per_s:
        bound = "rate"
    return _found(best, best.rate_per_s, bound)


def _point(replica: ReplicaCapability, batch: int, held: float, prompt_tokens: float, output_tokens: float) -> _Point:
    """`held` slots of KV by each sequence."""
    model, ratio = replica.model, replica.step_time_ratio
    kv_tokens = round(batch * held)
    room = max(1, min(replica.limits.token_budget - batch, round(prompt_tokens)))
    decode_s = ratio * model.step_s(StepShape(decode_sequences=batch, kv_tokens=kv_tokens))
    mixed_s = ratio * model.step_s(
        StepShape(
            decode_sequences=batch,
            kv_tokens=kv_tokens,
            prefill_tokens=room,
            prefill_context_tokens=round(max(0.0, prompt_tokens - room) / 2),
        )
    )
    prefill_s = max(mixed_s - decode_s, 1e-9) / room
    rate_per_s = batch / (output_tokens * decode_s + batch * prompt_tokens * prefill_s)
    return _Point(
        batch=batch,
        rate_per_s=rate_per_s,
        tpot_s=decode_s + batch * prompt_tokens * prefill_s / output_tokens,
        late_ttft_s=_late_ttft_s(rate_per_s, prompt_tokens * mixed_s / room, decode_s),
        prefill_s_per_token=prefill_s,
        decode_s=decode_s,
        service_s=prompt_tokens * mixed_s / room,
    )


def _rate_within(ttft_s: float, first: _Point) -> float:
    """Below that of one sequence after another: prompts seldom meet; 0 where one alone is late."""
    low, high = 0.0, first.rate_per_s
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        late_s = _late_ttft_s(middle, first.service_s, first.decode_s)
        low, high = (middle, high) if late_s <= ttft_s else (low, middle)
    return low if low > LEAST_SHARE * first.rate_per_s else 0.0


def _late_ttft_s(rate_per_s: float, service_s: float, decode_s: float) -> float:
    """What 1 request in 100 passes: half a step until it is seen, the queue, and its own prompt."""
    busy = rate_per_s * service_s
    if busy >= 1:
        return float("inf")
    queue_s = max(0.0, log(busy / LATE_SHARE)) * service_s * (1 + PROMPT_VARIATION) / (2 * (1 - busy))
    return decode_s / 2 + queue_s + service_s


def _found(point: _Point, rate_per_s: float, bound: SustainedBound) -> Sustained:
    return Sustained(
        rate_per_s=rate_per_s,
        batch=point.batch,
        tpot_s=point.tpot_s,
        bound=bound,
        prefill_tokens_per_s=1 / point.prefill_s_per_token,
        decode_tokens_per_s=point.batch / point.decode_s,
    )


def _rounded(tokens: float) -> float:
    """To steps of 5 %, so that means that drift by a token do not cost a bisection each time."""
    step = 1.05
    return float(step ** round(log(max(1.0, tokens)) / log(step)))
