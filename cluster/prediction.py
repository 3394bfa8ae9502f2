"""TTFT, TPOT and cost of one more request on a replica, by its backlog and the cost model; it knows no SLO."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from cluster.cost_model import CostModel
from cluster.profile import StepShape


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLimits:
    """What an engine takes at most; the figures of its EngineSpec."""

    token_budget: int
    max_sequences: int
    max_waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What a replica has before it, as the router believes."""

    kv_capacity_tokens: int
    kv_used_tokens: int = 0
    kv_promised_tokens: int = 0
    """What admitted requests may still come to need."""
    decoding: int = 0
    waiting: int = 0
    """Admitted, and no token given yet."""
    prefill_tokens: int = 0
    """Of prompts, admitted and not computed."""
    prefill_tokens_per_s: float = 0.0
    """Recent arrivals: prompts that will share the steps of whoever decodes."""
    step_time_ratio: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    ttft_s: float
    tpot_s: float
    wait_s: float
    """Part of ttft_s: until there is a slot and KV for it."""
    cost_s: float
    """Seconds of the replica's share of the accelerator: its own prefill, and its part of every decode step."""
    total_s: float


def predict(
    model: CostModel, limits: ReplicaLimits, backlog: Backlog, *, prompt_tokens: int, output_tokens: float
) -> Prediction:
    tpot_s, batch = _tpot(model, limits, backlog, prompt_tokens, output_tokens)
    wait_s = _wait_s(limits, backlog, prompt_tokens, output_tokens, tpot_s)
    decodes_s = model.step_s(_with_prefill(backlog, 0, 0)) if backlog.decoding else 0.0
    ttft_s = wait_s + backlog.step_time_ratio * _prefill_s(model, limits, backlog, prompt_tokens, decodes_s)
    # What its prompt adds to the steps of the decodes; all of the steps where there is nothing else in them.
    with_prompt_s = model.step_s(_with_prefill(backlog, prompt_tokens, 0))
    own_prefill_s = backlog.step_time_ratio * max(0.0, with_prompt_s - decodes_s)
    return Prediction(
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        wait_s=wait_s,
        cost_s=(own_prefill_s + output_tokens * tpot_s / batch) * model.share,
        total_s=ttft_s + output_tokens * tpot_s,
    )


def _tpot(
    model: CostModel, limits: ReplicaLimits, backlog: Backlog, prompt_tokens: int, output_tokens: float
) -> tuple[float, int]:
    """A step of the batch it joins, with the prompts that keep arriving in it; and that batch."""
    batch = min(backlog.decoding + backlog.waiting + 1, limits.max_sequences)
    held = backlog.kv_used_tokens + backlog.prefill_tokens + prompt_tokens + output_tokens / 2
    kv_tokens = round(min(held, backlog.kv_capacity_tokens))
    step_s = model.step_s(StepShape(decode_sequences=batch, kv_tokens=kv_tokens))
    arriving = min(backlog.prefill_tokens_per_s * step_s, max(0, limits.token_budget - batch))
    if arriving >= 1:
        shape = StepShape(decode_sequences=batch, kv_tokens=kv_tokens, prefill_tokens=round(arriving))
        step_s = model.step_s(shape)
    return backlog.step_time_ratio * step_s, batch


def _prefill_s(
    model: CostModel, limits: ReplicaLimits, backlog: Backlog, prompt_tokens: int, decodes_s: float
) -> float:
    """Every prompt token before it and its own, in steps that the decodes share."""
    room = max(1, limits.token_budget - backlog.decoding)
    full_steps, rest = divmod(backlog.prefill_tokens + prompt_tokens, room)
    context = max(0, prompt_tokens - room) // 2
    full_s = full_steps * model.step_s(_with_prefill(backlog, room, context)) if full_steps else 0.0
    rest_s = model.step_s(_with_prefill(backlog, rest, context)) if rest else 0.0
    # It comes in the middle of a step.
    return decodes_s / 2 + full_s + rest_s


def _wait_s(limits: ReplicaLimits, backlog: Backlog, prompt_tokens: int, output_tokens: float, tpot_s: float) -> float:
    """Until sequences have ended that hold what is missing: all of them end within one life, evenly.

    Promises count as far as requests like this one come to use them: most clients set max_tokens far above that, and
    the engine preempts where it was wrong.
    """
    if not backlog.decoding:
        return 0.0
    life_s = output_tokens * tpot_s
    likely_tokens = backlog.prefill_tokens + (backlog.decoding + backlog.waiting) * output_tokens
    promised_tokens = min(backlog.kv_promised_tokens, likely_tokens)
    needed_tokens = backlog.kv_used_tokens + promised_tokens + prompt_tokens + output_tokens
    kv_share = max(0.0, needed_tokens - backlog.kv_capacity_tokens) / max(1, backlog.kv_used_tokens)
    ahead = backlog.decoding + backlog.waiting + 1 - limits.max_sequences
    slot_share = max(0, ahead) / backlog.decoding
    return life_s * max(kv_share, slot_share)


def _with_prefill(backlog: Backlog, tokens: int, context_tokens: int) -> StepShape:
    return StepShape(
        decode_sequences=backlog.decoding,
        kv_tokens=backlog.kv_used_tokens,
        prefill_tokens=ceil(tokens),
        prefill_context_tokens=context_tokens if tokens else 0,
    )
