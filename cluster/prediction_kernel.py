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

MACHINE_FIELDS = 13
"""Of a machine: the ideal times per weight read, token, KV token and pair; the share; then t0 and, where it is fitted,
the coefficients of step_fit.Fitted with the first of its residuals and their number."""
WEIGHTS_S, LINEAR_TOKEN_S, KV_TOKEN_S, PAIR_S, SHARE, T0_S, PER_TOKEN_S, WEIGHTS = range(8)
KNEE, DECODE_ATTENTION, PREFILL_ATTENTION, FIRST_RESIDUAL, NUM_RESIDUALS = range(8, MACHINE_FIELDS)
"""KNEE is 0 for a plain roofline."""

CAPACITY, USED, PROMISED, DECODING, WAITING, PREFILL, RATE, RATIO = range(8)
"""Rows of backlogs, as Backlog's fields."""
TTFT, TPOT, WAIT, COST, TOTAL, DECODES = range(6)
"""Rows of predictions, in seconds; COST in those of a whole accelerator; DECODES is a step without this request."""
NUM_PREDICTIONS = 6
NEAREST = 1e-9
"""As in step_fit.Fitted._ratio."""


def _compiled(function: Function) -> Function:
    return cast(Function, numba.njit(cache=True, error_model="numpy")(function))


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
    arithmetic_s = machine[PER_TOKEN_S] * tokens + reading_s * max(0.0, tokens / machine[KNEE] - 1)
    attention_s = machine[DECODE_ATTENTION] * max(decode_read_s, decode_flops_s)
    attention_s += machine[PREFILL_ATTENTION] * max(prefill_read_s, prefill_flops_s)
    fitted_s = machine[T0_S] + reading_s + arithmetic_s + attention_s
    first, count = int(machine[FIRST_RESIDUAL]), int(machine[NUM_RESIDUALS])
    if not count:
        return float(fitted_s)
    # step_fit._place and Fitted._ratio
    by_decodes, by_kv = log(decodes + 1), log(kv_tokens + 64) / 2
    by_prefill, by_context = log(prefill + 16), log(context + 64) / 2
    total = weight_sum = 0.0
    for index in range(first, first + count):
        squared = (by_decodes - residuals[index, 0]) ** 2 + (by_kv - residuals[index, 1]) ** 2
        squared += (by_prefill - residuals[index, 2]) ** 2 + (by_context - residuals[index, 3]) ** 2
        weight = 1 / (squared * squared + NEAREST)
        total += weight * residuals[index, 4]
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
        own_s = max(0.0, step_s(machine, residuals, decoding, used, float(ceil(prompt_tokens)), 0.0) - decodes_s)

        ttft_s = wait_s + ratio * prompts_s
        predictions[TTFT, place] = ttft_s
        predictions[TPOT, place] = tpot_s
        predictions[WAIT, place] = wait_s
        predictions[COST, place] = (ratio * own_s + output_tokens * tpot_s / batch) * machine[SHARE]
        predictions[TOTAL, place] = ttft_s + output_tokens * tpot_s
        predictions[DECODES, place] = ratio * decodes_s
