"""The arithmetic of a prediction for many replicas at once, compiled: step times and what follows; it knows no names.

All of it stands in this file, because numba's cache notices no change of another. Arrays are float64; their columns
are named by the constants here.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, exp, floor, log
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Function = TypeVar("Function", bound=Callable[..., Any])

MACHINE_FIELDS = 14
"""Of a machine: the ideal times per weight read, token, KV token and pair; the share; then t0 and, where it is fitted,
the coefficients of step_fit.Fitted with the first of its residuals and their number."""
WEIGHTS_S, LINEAR_TOKEN_S, KV_TOKEN_S, PAIR_S, SHARE, T0_S, PER_TOKEN_S, WEIGHTS, SECOND_READ = range(9)
KNEE, DECODE_ATTENTION, PREFILL_ATTENTION, FIRST_RESIDUAL, NUM_RESIDUALS = range(9, MACHINE_FIELDS)
"""KNEE is 0 for a plain roofline."""

CAPACITY, USED, PROMISED, DECODING, WAITING, PREFILL, RATE, RATIO = range(8)
"""Rows of backlogs, as Backlog's fields."""
TTFT, TPOT, WAIT, COST, TOTAL, DECODES = range(6)
"""Rows of predictions, in seconds; COST in those of a whole accelerator; DECODES is a step without this request."""
NUM_PREDICTIONS = 6
WITHOUT_PREFILL, WITHOUT_CONTEXT = log(16), log(64) / 2
NEAREST = 1e-9
"""As in step_fit.Fitted._ratio."""


def _compiled(function: Function) -> Function:
    # Sums may be taken in another order, so that four residuals are one instruction; no other liberty.
    return cast(Function, numba.njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract"})(function))


@_compiled
def step_s(
    machine: Floats, residuals: Floats, decodes: float, kv_tokens: float, prefill: float, context: float
) -> float:
    """CostModel.step_s; `residuals` has the places of all machines and, last, log(measured / fitted)."""
    tokens = decodes + prefill
    linear_flops_s = tokens * machine[LINEAR_TOKEN_S]
    decode_read_s, decode_flops_s = kv_tokens * machine[KV_TOKEN_S], kv_tokens * machine[PAIR_S]
    prefill_read_s = context * machine[KV_TOKEN_S]
    prefill_flops_s = prefill * (context + prefill / 2) * machine[PAIR_S]
    if machine[KNEE] == 0:
        attention_s = max(decode_read_s + prefill_read_s, decode_flops_s + prefill_flops_s)
        return float(machine[T0_S] + max(machine[WEIGHTS_S], linear_flops_s) + attention_s)
    reading_s = machine[WEIGHTS] * machine[WEIGHTS_S]
    beyond = max(1.0, tokens / machine[KNEE])
    arithmetic_s = machine[PER_TOKEN_S] * tokens + reading_s * (beyond - 1)
    if decodes and prefill:  # step_fit.Phases.second_read_s
        apart = max(1.0, decodes / machine[KNEE]) + max(1.0, prefill / machine[KNEE])
        reading_s += machine[SECOND_READ] * machine[WEIGHTS_S] * (apart - beyond)
    attention_s = machine[DECODE_ATTENTION] * max(decode_read_s, decode_flops_s)
    attention_s += machine[PREFILL_ATTENTION] * max(prefill_read_s, prefill_flops_s)
    fitted_s = machine[T0_S] + reading_s + arithmetic_s + attention_s
    first, count = int(machine[FIRST_RESIDUAL]), int(machine[NUM_RESIDUALS])
    if not count:
        return float(fitted_s)
    # step_fit._place and Fitted._ratio
    by_decodes, by_kv = log(decodes + 1), log(kv_tokens + 64) / 2
    by_prefill = log(prefill + 16) if prefill else WITHOUT_PREFILL  # a logarithm takes as long as eight residuals
    by_context = log(context + 64) / 2 if context else WITHOUT_CONTEXT
    total = weight_sum = 0.0
    for index in range(first, first + count):
        squared = (by_decodes - residuals[0, index]) ** 2 + (by_kv - residuals[1, index]) ** 2
        squared += (by_prefill - residuals[2, index]) ** 2 + (by_context - residuals[3, index]) ** 2
        weight = 1 / (squared * squared + NEAREST)
        total += weight * residuals[4, index]
        weight_sum += weight
    return float(exp(total / weight_sum) * fitted_s)


@_compiled
def predict_rows(
    machines: Floats,
    residuals: Floats,
    backlogs: Floats,
    token_budget: int,
    max_sequences: int,
    prompt_tokens: float,
    output_tokens: float,
    predictions: Floats,
) -> None:
    """Of each replica: a row of machines, a column of backlogs and of predictions, which it fills."""
    for place in range(len(machines)):
        machine = machines[place]
        used, ratio = backlogs[USED, place], backlogs[RATIO, place]
        decoding, waiting = backlogs[DECODING, place], backlogs[WAITING, place]
        ahead_tokens = backlogs[PREFILL, place]
        decodes_s = step_s(machine, residuals, decoding, used, 0.0, 0.0) if decoding else 0.0

        # TPOT: a step of the batch it joins, with the prompts that keep arriving in it.
        batch = min(decoding + waiting + 1, float(max_sequences))
        held = used + ahead_tokens + prompt_tokens + output_tokens / 2
        kv_tokens = np.rint(min(held, backlogs[CAPACITY, place]))
        joined_s = step_s(machine, residuals, batch, kv_tokens, 0.0, 0.0)
        arriving = min(backlogs[RATE, place] * joined_s, max(0.0, token_budget - batch))
        if arriving >= 1:
            joined_s = step_s(machine, residuals, batch, kv_tokens, np.rint(arriving), 0.0)
        tpot_s = ratio * joined_s

        # Waiting until sequences have ended that hold what is missing: all of them end within one life, evenly.
        # Promises count as far as requests like this one come to use them: most clients set max_tokens far above that,
        # and the engine preempts where it was wrong.
        wait_s = 0.0
        if decoding:
            likely = ahead_tokens + (decoding + waiting) * output_tokens
            needed = used + min(backlogs[PROMISED, place], likely) + prompt_tokens + output_tokens
            kv_share = max(0.0, needed - backlogs[CAPACITY, place]) / max(1.0, used)
            slot_share = max(0.0, decoding + waiting + 1 - max_sequences) / decoding
            wait_s = output_tokens * tpot_s * max(kv_share, slot_share)

        # Prompts: every token before it and its own, in steps that the decodes share; it comes in the middle of one.
        room = max(1.0, token_budget - decoding)
        full_steps = floor((ahead_tokens + prompt_tokens) / room)
        rest = ahead_tokens + prompt_tokens - full_steps * room
        context = float(floor(max(0.0, prompt_tokens - room) / 2))
        prompts_s = decodes_s / 2
        if full_steps:
            prompts_s += full_steps * step_s(machine, residuals, decoding, used, room, context)
        if rest:
            prompts_s += step_s(machine, residuals, decoding, used, rest, context)
        # What its prompt adds to the steps of the decodes; all of the steps where there is nothing else in them.
        if rest == prompt_tokens and not full_steps and context == 0:
            own_s = max(0.0, prompts_s - decodes_s * 1.5)  # that very step
        else:
            own_s = max(0.0, step_s(machine, residuals, decoding, used, float(ceil(prompt_tokens)), 0.0) - decodes_s)

        ttft_s = wait_s + ratio * prompts_s
        predictions[TTFT, place] = ttft_s
        predictions[TPOT, place] = tpot_s
        predictions[WAIT, place] = wait_s
        predictions[COST, place] = (ratio * own_s + output_tokens * tpot_s / batch) * machine[SHARE]
        predictions[TOTAL, place] = ttft_s + output_tokens * tpot_s
        predictions[DECODES, place] = ratio * decodes_s


@_compiled
def overshoot_rows(
    predictions: Floats, promised_s: Floats, ttft_most_s: float, tpot_most_s: float, total_most_s: float
) -> Floats:
    """Of each replica the worst of predicted / limit; limits that are not set are infinite.

    A promise that is broken already, by the decodes that are there, is no reason to keep others out.
    """
    worst = np.zeros(predictions.shape[1])
    for place in range(len(worst)):
        tpot_s = predictions[TPOT, place]
        most = max(predictions[TTFT, place] / ttft_most_s, tpot_s / tpot_most_s)
        most = max(most, predictions[TOTAL, place] / total_most_s)
        if predictions[DECODES, place] <= promised_s[place]:
            most = max(most, tpot_s / promised_s[place])
        worst[place] = most
    return worst


@_compiled
def least_places(
    scores: Floats, among: NDArray[np.bool_], variant_of: NDArray[np.intp], num_variants: int, tie: float, draw: float
) -> NDArray[np.intp]:
    """By variant the place of a least score among those, -1 where there is none; `draw` in [0, 1) decides ties.

    Scores up to `tie` times the least are equal to it.
    """
    least = np.full(num_variants, np.inf)
    for place in range(len(scores)):
        if among[place]:
            least[variant_of[place]] = min(least[variant_of[place]], scores[place])
    tied = np.zeros(num_variants, np.intp)
    for place in range(len(scores)):
        if among[place] and scores[place] <= tie * least[variant_of[place]]:
            tied[variant_of[place]] += 1
    wanted = np.floor(draw * tied).astype(np.intp)
    found = np.full(num_variants, -1, np.intp)
    for place in range(len(scores)):
        variant = variant_of[place]
        if among[place] and scores[place] <= tie * least[variant]:
            if wanted[variant] == 0:
                found[variant] = place
            wanted[variant] -= 1
    return found
