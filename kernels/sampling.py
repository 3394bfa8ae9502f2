"""The next token of each row of logits: penalties, filters, a seeded draw, log-probabilities; knows no request.

In vLLM's order: logit bias, then penalties (repetition over prompt and output; presence and frequency over the
output), temperature, min_p, top_k, top_p. Tokens that tie with the last one kept by top_k or top_p are kept too. A draw
inverts the cumulative distribution at a number made of (seed, position) only, so a seed gives the same text in any
batch. Log-probabilities are those of the logits as they came in, before all of that.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kernels.packing import LANES


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalties:
    """Token ids of all rows end to end: row r has prompt ids, then output ids, in starts[r] .. starts[r + 1]."""

    repetition: np.ndarray
    """[R] float, 1 = none"""
    presence: np.ndarray
    """[R] float, 0 = none"""
    frequency: np.ndarray
    token_ids: np.ndarray
    """[tokens] int32; a row without penalties has none"""
    starts: np.ndarray
    """[R + 1] int64"""
    output_starts: np.ndarray
    """[R] int64: where the row's output begins"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitBias:
    """Values added to some logits; minus infinity bans a token (an end token before min_tokens)."""

    token_ids: np.ndarray
    """[entries] int32"""
    values: np.ndarray
    """[entries] float32"""
    starts: np.ndarray
    """[R + 1] int64"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingBatch:
    temperature: np.ndarray
    """[R]; 0 = the most likely token, the lowest id among equals"""
    top_k: np.ndarray
    """[R]; 0 = off"""
    top_p: np.ndarray
    """[R]; 1 = off"""
    min_p: np.ndarray
    """[R]; 0 = off"""
    seed: np.ndarray
    """[R] int64"""
    position: np.ndarray
    """[R] int64: how many tokens the row has generated"""
    penalties: Penalties | None = None
    bias: LogitBias | None = None
    num_logprobs: int | None = None
    """None = no log-probabilities; 0 = the drawn token's; n = also the n largest"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTokens:
    token_ids: Tensor
    """[R] int64"""
    logprobs: Tensor | None
    """[R] fp32: of the drawn token"""
    top_ids: Tensor | None
    """[R, n] int64, most likely first"""
    top_logprobs: Tensor | None


def batch_of_settings(
    num_rows: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> SamplingBatch:
    """Every row alike but for its position, its number: the same logits are drawn from anew."""
    return SamplingBatch(
        temperature=np.full(num_rows, temperature),
        top_k=np.full(num_rows, top_k),
        top_p=np.full(num_rows, top_p),
        min_p=np.full(num_rows, min_p),
        seed=np.full(num_rows, seed),
        position=np.arange(num_rows),
    )


def greedy_batch(num_rows: int) -> SamplingBatch:
    return batch_of_settings(num_rows)


def sample(logits: Tensor, batch: SamplingBatch) -> SampledTokens:
    """logits [R, V] fp32, left as they are."""
    if not logits.is_cpu:
        return sample_reference(logits, batch)
    cpu, pool = _cpu()
    num_rows, vocab = logits.shape
    if vocab % LANES:
        logits = functional.pad(logits, (0, -vocab % LANES), value=float("-inf"))
    logits = logits if logits.is_contiguous() else logits.contiguous()
    count = logits.shape[1]
    floats, integers = _parameter_tables(batch, num_rows, cpu)
    drawn = _empty_result(num_rows, batch.num_logprobs)
    penalties, bias = batch.penalties, batch.bias
    scratch = torch.empty(pool.num_threads() * (3 * count + cpu.BIN_FLOATS))
    pool.launch(
        cpu.sample_rows,
        num_rows,
        logits.data_ptr(),
        count,
        floats.ctypes.data,
        integers.ctypes.data,
        0 if penalties is None else penalties.token_ids.ctypes.data,
        0 if bias is None else bias.token_ids.ctypes.data,
        0 if bias is None else bias.values.ctypes.data,
        drawn.token_ids.data_ptr(),
        0 if drawn.logprobs is None else drawn.logprobs.data_ptr(),
        0 if drawn.top_ids is None else drawn.top_ids.data_ptr(),
        0 if drawn.top_logprobs is None else drawn.top_logprobs.data_ptr(),
        batch.num_logprobs or 0,
        scratch.data_ptr(),
    )
    return drawn


def _parameter_tables(batch: SamplingBatch, num_rows: int, cpu: Any) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel reads of each row, in its order of columns."""
    floats = np.zeros((num_rows, cpu.FLOATS), dtype=np.float32)
    integers = np.zeros((num_rows, cpu.INTEGERS), dtype=np.int64)
    floats[:, cpu.TEMPERATURE] = batch.temperature
    floats[:, cpu.TOP_P] = batch.top_p
    floats[:, cpu.MIN_P] = batch.min_p
    integers[:, cpu.SEED] = batch.seed
    integers[:, cpu.POSITION] = batch.position
    integers[:, cpu.TOP_K] = batch.top_k
    if (penalties := batch.penalties) is not None:
        floats[:, cpu.REPETITION] = penalties.repetition
        floats[:, cpu.PRESENCE] = penalties.presence
        floats[:, cpu.FREQUENCY] = penalties.frequency
        integers[:, cpu.TOKENS] = penalties.starts[:-1]
        integers[:, cpu.OUTPUT] = penalties.output_starts
        integers[:, cpu.TOKENS_END] = penalties.starts[1:]
    if (bias := batch.bias) is not None:
        integers[:, cpu.BIAS] = bias.starts[:-1]
        integers[:, cpu.BIAS_END] = bias.starts[1:]
    return floats, integers


def _empty_result(num_rows: int, num_logprobs: int | None) -> SampledTokens:
    wants, wants_top = num_logprobs is not None, bool(num_logprobs)
    shape = (num_rows, num_logprobs or 0)
    return SampledTokens(
        token_ids=torch.empty(num_rows, dtype=torch.int64),
        logprobs=torch.empty(num_rows) if wants else None,
        top_ids=torch.empty(shape, dtype=torch.int64) if wants_top else None,
        top_logprobs=torch.empty(shape) if wants_top else None,
    )


def sample_reference(logits: Tensor, batch: SamplingBatch) -> SampledTokens:
    tokens = [_sample_row_reference(logits[row].float(), batch, row) for row in range(len(logits))]
    token_ids = torch.tensor(tokens, dtype=torch.int64, device=logits.device)
    if batch.num_logprobs is None:
        return SampledTokens(token_ids=token_ids, logprobs=None, top_ids=None, top_logprobs=None)
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    top = logprobs.topk(batch.num_logprobs) if batch.num_logprobs else None
    return SampledTokens(
        token_ids=token_ids,
        logprobs=logprobs.gather(1, token_ids[:, None])[:, 0],
        top_ids=None if top is None else top.indices,
        top_logprobs=None if top is None else top.values,
    )


def _sample_row_reference(logits: Tensor, batch: SamplingBatch, row: int) -> int:
    logits = _penalised_reference(logits.clone(), batch, row)
    if batch.temperature[row] == 0:
        return int(logits.argmax())
    p = torch.softmax(logits.double() / float(batch.temperature[row]), dim=-1)
    p = p * (p >= p.max() * float(batch.min_p[row]))
    if 0 < batch.top_k[row] < len(p):
        p = p * (p >= p.topk(int(batch.top_k[row])).values[-1])
    if batch.top_p[row] < 1:
        ordered = p.sort(descending=True).values
        before = ordered.cumsum(0) - ordered
        kept = before < float(batch.top_p[row]) * p.sum()
        kept[0] = True
        p = p * (p >= ordered[kept][-1])
    point = uniform(int(batch.seed[row]), int(batch.position[row])) * p.sum()
    return int(torch.searchsorted(p.cumsum(0), point, right=True).clamp(max=len(p) - 1))


def _penalised_reference(logits: Tensor, batch: SamplingBatch, row: int) -> Tensor:
    if (bias := batch.bias) is not None:
        entries = slice(int(bias.starts[row]), int(bias.starts[row + 1]))
        for token, value in zip(bias.token_ids[entries], bias.values[entries], strict=True):
            logits[int(token)] += float(value)
    if (penalties := batch.penalties) is None:
        return logits
    start, end = int(penalties.starts[row]), int(penalties.starts[row + 1])
    seen = torch.from_numpy(np.unique(penalties.token_ids[start:end])).long().to(logits.device)
    repetition = float(penalties.repetition[row])
    values = logits[seen]
    logits[seen] = torch.where(values > 0, values / repetition, values * repetition)
    output = penalties.token_ids[int(penalties.output_starts[row]) : end]
    counts = torch.from_numpy(np.bincount(output, minlength=len(logits))).to(logits.device)
    logits -= counts * float(penalties.frequency[row])
    logits -= (counts > 0) * float(penalties.presence[row])
    return logits


def uniform(seed: int, position: int) -> float:
    """In [0, 1): splitmix64 of the seed, then of that and the position."""
    mask = 2**64 - 1
    return (_splitmix64(_splitmix64(seed & mask) ^ (position & mask)) >> 11) * 2.0**-53


def _splitmix64(state: int) -> int:
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


@cache
def _cpu() -> Any:
    from kernels.cpu import pool, sampling

    return sampling, pool
