"""The sampling parameters of a step's rows as the arrays that kernels.sampling reads; it draws nothing."""

from __future__ import annotations

from collections.abc import Set
from itertools import accumulate

import numpy as np

from engine.sequence import Sequence
from kernels.sampling import LogitBias, Penalties, SamplingBatch

NEVER = float("-inf")
# numpy's int64; a seed beyond it, or a negative one, is as good as any other
SEED_MASK = 2**63 - 1


def sampling_batch(sequences: list[Sequence], eos_token_ids: Set[int]) -> SamplingBatch:
    """One row per sequence, in order; seed and position make a row's draw independent of the others."""
    params = [sequence.request.sampling for sequence in sequences]
    wanted = [sampling.logprobs for sampling in params if sampling.logprobs is not None]
    return SamplingBatch(
        temperature=np.array([sampling.temperature for sampling in params]),
        top_k=np.array([sampling.top_k for sampling in params]),
        top_p=np.array([sampling.top_p for sampling in params]),
        min_p=np.array([sampling.min_p for sampling in params]),
        seed=np.array([sequence.seed & SEED_MASK for sequence in sequences]),
        position=np.array([sequence.num_output_tokens for sequence in sequences]),
        penalties=_penalties(sequences),
        bias=_logit_bias(sequences, eos_token_ids),
        num_logprobs=max(wanted) if wanted else None,
    )


def is_penalised(sequence: Sequence) -> bool:
    sampling = sequence.request.sampling
    return sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def _penalties(sequences: list[Sequence]) -> Penalties | None:
    if not any(is_penalised(sequence) for sequence in sequences):
        return None
    params = [sequence.request.sampling for sequence in sequences]
    token_ids: list[int] = []
    starts, output_starts = [0], []
    for sequence in sequences:
        counts = is_penalised(sequence)
        output_starts.append(starts[-1] + (sequence.num_prompt_tokens if counts else 0))
        token_ids += sequence.token_ids if counts else []
        starts.append(len(token_ids))
    return Penalties(
        repetition=np.array([sampling.repetition_penalty for sampling in params]),
        presence=np.array([sampling.presence_penalty for sampling in params]),
        frequency=np.array([sampling.frequency_penalty for sampling in params]),
        token_ids=np.array(token_ids, dtype=np.int32),
        starts=np.array(starts, dtype=np.int64),
        output_starts=np.array(output_starts, dtype=np.int64),
    )


def _logit_bias(sequences: list[Sequence], eos_token_ids: Set[int]) -> LogitBias | None:
    rows = [row_bias(sequence, eos_token_ids, sequence.num_output_tokens) for sequence in sequences]
    if not any(rows):
        return None
    return LogitBias(
        token_ids=np.array([token for row in rows for token in row], dtype=np.int32),
        values=np.array([value for row in rows for value in row.values()], dtype=np.float32),
        starts=np.array([0, *accumulate(len(row) for row in rows)], dtype=np.int64),
    )


def row_bias(sequence: Sequence, eos_token_ids: Set[int], num_output_tokens: int) -> dict[int, float]:
    """The request's own, and a ban on what would end the text before min_tokens."""
    sampling = sequence.request.sampling
    if num_output_tokens >= sampling.min_tokens:
        return sampling.logit_bias
    ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else set(eos_token_ids))
    return {**sampling.logit_bias, **dict.fromkeys(sorted(ends), NEVER)}
