"""The next token of each row of logits on the GPU: a seeded draw with filters, log-probabilities; knows no request.

Gumbel-max: the token with the largest logit / T - log(-log(uniform)) is a draw from the softmax, and the largest among
the tokens that a filter keeps is a draw from the filtered softmax. The uniform is Philox of (seed, position, token), so
that a seed and a position give the same token in any batch. In vLLM's order: temperature, min_p, top_k, top_p, each of
what is left; tokens that tie with the last one kept are kept too. Temperature 0 is the largest logit, no filter.

Two kernels. `_score_kernel` walks chunks of rows and leaves of each chunk its best token (and of filtered rows some
maxima). `_choose_kernel`, a program a row, takes the best of the chunks; that is all for rows without a filter. With
one it asks first whether that token is kept, which it mostly is, and else narrows the threshold of the kept set by
bisection with four pivots a pass, over only those sub-blocks of the row that reach above the lowest pivot. Nothing is
sorted, and nothing returns to the host.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.launch import num_sms, pdl

# Token 4 * 512 * b + 512 * j + i takes output j of Philox at counter 512 * b + i: part of what a seed means, so that
# neither the chunks nor the card may change it. A sub-block is 512 tokens.
SUB_BLOCK = tl.constexpr(512)
BLOCK = tl.constexpr(2048)
MASK64 = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSampling:
    """Each [R], on the logits' device."""

    temperature: Tensor
    """fp32; 0 = the largest logit, the lowest id among equals"""
    top_k: Tensor
    """int32; 0 = off"""
    top_p: Tensor
    """fp32; 1 = off"""
    min_p: Tensor
    """fp32; 0 = off"""
    seed: Tensor
    """int64"""
    position: Tensor
    """int32: how many tokens the row has generated"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    blocks_per_program: int
    """Blocks of 2048 tokens a program of `_score_kernel` walks"""
    score_warps: int
    choose_warps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingScratch:
    """What the first kernel leaves for the second; its contents mean nothing between calls."""

    score: Tensor
    """[R, blocks] fp32: the best score of a chunk"""
    token: Tensor
    """[R, blocks] int32: its token"""
    maximum: Tensor
    """[R, blocks] fp32: the largest logit of a chunk, infinity if it has a NaN"""
    mass: Tensor
    """[R, blocks] fp32: sum of exp((logit - maximum) / T) of a chunk; filtered rows only, like the two below"""
    sub_maximum: Tensor
    """[R, 4 * blocks] fp32: the largest logit of a sub-block"""
    order: Tensor
    """[R, 4 * blocks] int32: sub-blocks by falling maximum"""


def sampling_scratch(rows: int, vocab: int, device: torch.device | str) -> SamplingScratch:
    blocks = -(-vocab // BLOCK.value)

    def empty(width: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, width, dtype=dtype, device=device)

    return SamplingScratch(
        score=empty(blocks, torch.float32),
        token=empty(blocks, torch.int32),
        maximum=empty(blocks, torch.float32),
        mass=empty(blocks, torch.float32),
        sub_maximum=empty(4 * blocks, torch.float32),
        order=empty(4 * blocks, torch.int32),
    )


def default_config(rows: int, vocab: int, sms: int) -> SamplingConfig:
    """Short programs until every SM has 16 of them, then longer ones, whose reductions cost less."""
    programs = rows * -(-vocab // BLOCK.value)
    return SamplingConfig(blocks_per_program=1 if programs <= 16 * sms else 4, score_warps=4, choose_warps=16)


def sample_tokens(
    logits: Tensor,
    params: DeviceSampling,
    out_ids: Tensor | None = None,
    scratch: SamplingScratch | None = None,
    config: SamplingConfig | None = None,
) -> Tensor:
    """logits [R, V] bf16 or fp32 -> [R] int64 (or what `out_ids` is, int64 or int32); logits are left as they are.

    Token -1 = the row has a NaN, or its largest logit is not finite. `scratch` may be of more rows, of the same V.
    """
    rows, vocab = logits.shape
    out_ids = torch.empty(rows, dtype=torch.int64, device=logits.device) if out_ids is None else out_ids
    if rows == 0:
        return out_ids
    scratch = sampling_scratch(rows, vocab, logits.device) if scratch is None else scratch
    config = config or default_config(rows, vocab, num_sms(logits))
    blocks = scratch.score.shape[1]
    if blocks != -(-vocab // BLOCK.value):
        raise ValueError(f"the scratch is for {blocks} blocks of {BLOCK.value} tokens, not for {vocab} tokens")
    chunks = -(-blocks // config.blocks_per_program)
    on = pdl(logits)
    launch = {"launch_pdl": True} if on else {}
    _score_kernel[(chunks, rows)](
        logits, params.temperature, params.top_k, params.top_p, params.min_p, params.seed, params.position,
        scratch.score, scratch.token, scratch.maximum, scratch.mass, scratch.sub_maximum,
        vocab, logits.stride(0), blocks,
        BLOCKS=config.blocks_per_program, FAST=logits.is_cuda, PDL=on, num_warps=config.score_warps, **launch,
    )  # fmt: skip
    _choose_kernel[(rows,)](
        logits, params.temperature, params.top_k, params.top_p, params.min_p, params.seed, params.position,
        scratch.score, scratch.token, scratch.maximum, scratch.mass, scratch.sub_maximum, scratch.order, out_ids,
        vocab, logits.stride(0), blocks, chunks,
        CHUNKS=triton.next_power_of_2(chunks), SUBS=max(triton.next_power_of_2(4 * blocks), 32),
        FAST=logits.is_cuda, PDL=on, num_warps=config.choose_warps, **launch,
    )  # fmt: skip
    return out_ids


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """logits [R, V], token_ids [R] -> logprobs [R] fp32, the num_top largest [R, num_top]: ids int64, logprobs fp32.

    Of the logits as they are; token -1 (an error) gets NaN.
    """
    logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    ids = token_ids.long()[:, None]
    drawn = logprobs.gather(1, ids.clamp(min=0))
    drawn = torch.where(ids < 0, torch.full_like(drawn, float("nan")), drawn)[:, 0]
    top = logprobs.topk(num_top)
    return drawn, top.indices, top.values


def sample_tokens_reference(logits: Tensor, params: DeviceSampling) -> Tensor:
    """[R] int64 on the CPU, in float64, by sorting."""
    tokens = []
    for row, values in enumerate(logits.double().cpu()):
        temperature = float(params.temperature[row])
        if values.isnan().any() or not math.isfinite(values.max()):
            tokens.append(-1)
        elif temperature == 0:
            tokens.append(int((values == values.max()).nonzero()[0]))
        else:
            kept = kept_tokens_reference(
                values / temperature, int(params.top_k[row]), float(params.top_p[row]), float(params.min_p[row])
            )
            noise = gumbel_reference(int(params.seed[row]), int(params.position[row]), len(values))
            scores = (values / temperature + noise).masked_fill(~kept, float("-inf"))
            tokens.append(int(scores.argmax()))
    return torch.tensor(tokens, dtype=torch.int64)


def kept_tokens_reference(scaled: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """scaled [V] float64, logits / T -> [V] bool: what kernels.sampling's reference keeps."""
    p = torch.softmax(scaled, dim=-1)
    p = p * (p >= p.max() * min_p)
    if 0 < top_k < len(p):
        p = p * (p >= p.topk(top_k).values[-1])
    if top_p < 1:
        ordered = p.sort(descending=True).values
        kept = ordered.cumsum(0) - ordered < top_p * p.sum()
        kept[0] = True
        p = p * (p >= ordered[kept][-1])
    return p > 0


def gumbel_reference(seed: int, position: int, vocab: int) -> Tensor:
    """[V] float64: the noise of every token."""
    key = _splitmix64_reference(_splitmix64_reference(seed & MASK64) ^ (position & MASK64))
    token = np.arange(vocab)
    block, output, lane = token // 2048, token // 512 % 4, token % 512
    words = _philox4x32_reference(key, (512 * block + lane).astype(np.uint64))
    fraction = (np.choose(output, words).astype(np.float64) + 0.5) * 2.0**-32
    return torch.from_numpy(-np.log(-np.log1p(-np.minimum(fraction, 1 - 2.0**-24))))


def _splitmix64_reference(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK64
    return state ^ (state >> 31)


def _philox4x32_reference(key: int, counter: np.ndarray) -> list[np.ndarray]:
    """Ten rounds (Salmon et al., 2011) of the counter (c, 0, 0, 0)."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = counter, *(np.zeros_like(counter) for _ in range(3))
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> shift) ^ c1 ^ np.uint64(k0), b & low, (a >> shift) ^ c3 ^ np.uint64(k1), a & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


@triton.jit
def _splitmix64(state):
    state = state + 0x9E3779B97F4A7C15
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB
    return state ^ (state >> 31)


@triton.jit
def _philox_key(seed, position):
    """int64, int32 -> uint64"""
    position = position.to(tl.int64).to(tl.uint64, bitcast=True)
    return _splitmix64(_splitmix64(seed.to(tl.uint64, bitcast=True)) ^ position)


@triton.jit
def _log2(x, FAST: tl.constexpr):
    """FAST: lg2.approx, one instruction with an absolute error of 2^-22; tl.log2 is about 20."""
    if FAST:
        return tl.extra.cuda.libdevice.fast_log2f(x)
    else:  # noqa: RET505 - the compiler drops this branch only where it is one
        return tl.log2(x)


@triton.jit
def _noise(word, FAST: tl.constexpr):
    """uint32 -> Gumbel noise over ln 2, up to a constant: -log2(E), E = -ln(1 - v) an exponential variable.

    A small E wins, so E is made where v is small, of v's full precision: by the series below 1/32 (relative error
    2e-7), above by the logarithm. v is never 0, and never 1 either: noise of minus infinity would let a token of
    no probability win.
    """
    v = tl.minimum(word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10, 0.99999994)
    series = v * (1.4426950408889634 + v * (0.7213475204444817 + v * (0.4808983469629878 + v * 0.36067376022224085)))
    return -_log2(tl.where(v < 0.03125, series, -_log2(1.0 - v, FAST)), FAST)


@triton.jit
def _score_kernel(
    logits, temperatures, top_ks, top_ps, min_ps, seeds, positions,
    scores, tokens, maxima, masses, sub_maxima, vocab, row_stride, blocks,
    BLOCKS: tl.constexpr, FAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(1)
    chunk = tl.program_id(0)
    wide_row = row.to(tl.int64)
    temperature = tl.load(temperatures + row)
    drawn = temperature > 0
    top_k = tl.load(top_ks + row)
    filtered = drawn & (((top_k > 0) & (top_k < vocab)) | (tl.load(top_ps + row) < 1.0) | (tl.load(min_ps + row) > 0.0))
    to_log2 = tl.where(drawn, tl.minimum(1.4426950408889634 / tl.where(drawn, temperature, 1.0), 1e30), 1.0)
    key = _philox_key(tl.load(seeds + row), tl.load(positions + row))
    lane = tl.arange(0, SUB_BLOCK)
    place = logits + wide_row * row_stride
    best = tl.full([SUB_BLOCK], float("-inf"), tl.float32)
    best_sub = tl.zeros([SUB_BLOCK], tl.int32)
    largest = best
    chunk_maximum = float("-inf")
    chunk_mass = 0.0
    for step in range(BLOCKS):
        block = chunk * BLOCKS + step
        first = block * BLOCK + lane
        a = tl.load(place + first, mask=first < vocab, other=float("-inf")).to(tl.float32)
        b = tl.load(place + first + SUB_BLOCK, mask=first + SUB_BLOCK < vocab, other=float("-inf")).to(tl.float32)
        c = tl.load(place + first + 2 * SUB_BLOCK, mask=first + 2 * SUB_BLOCK < vocab, other=float("-inf"))
        c = c.to(tl.float32)
        d = tl.load(place + first + 3 * SUB_BLOCK, mask=first + 3 * SUB_BLOCK < vocab, other=float("-inf"))
        d = d.to(tl.float32)
        nan: tl.constexpr = tl.PropagateNan.ALL
        largest = tl.maximum(largest, tl.maximum(a, b, propagate_nan=nan), propagate_nan=nan)
        largest = tl.maximum(largest, tl.maximum(c, d, propagate_nan=nan), propagate_nan=nan)
        if filtered & (block < blocks):
            ma, mb, mc, md = tl.max(a), tl.max(b), tl.max(c), tl.max(d)
            sub = sub_maxima + (wide_row * blocks + block) * 4
            tl.store(sub, ma)
            tl.store(sub + 1, mb)
            tl.store(sub + 2, mc)
            tl.store(sub + 3, md)
            maximum = tl.maximum(tl.maximum(ma, mb), tl.maximum(mc, md))
            base = tl.where(maximum > float("-inf"), maximum, 0.0)
            mass = tl.sum(
                (tl.exp2((a - base) * to_log2) + tl.exp2((b - base) * to_log2))
                + (tl.exp2((c - base) * to_log2) + tl.exp2((d - base) * to_log2))
            )
            both = tl.maximum(maximum, chunk_maximum)
            base_both = tl.where(both > float("-inf"), both, 0.0)
            chunk_mass = chunk_mass * tl.exp2((chunk_maximum - base_both) * to_log2) + mass * tl.exp2(
                (maximum - base_both) * to_log2
            )
            chunk_maximum = both
        if drawn:
            wa, wb, wc, wd = tl.randint4x(key, block * SUB_BLOCK + lane)
            a = a * to_log2 + _noise(wa, FAST)
            b = b * to_log2 + _noise(wb, FAST)
            c = c * to_log2 + _noise(wc, FAST)
            d = d * to_log2 + _noise(wd, FAST)
        # In rising order and by >, so that a lane keeps its lowest token among equals.
        best_sub = tl.where(a > best, block * 4, best_sub)
        best = tl.maximum(best, a)
        best_sub = tl.where(b > best, block * 4 + 1, best_sub)
        best = tl.maximum(best, b)
        best_sub = tl.where(c > best, block * 4 + 2, best_sub)
        best = tl.maximum(best, c)
        best_sub = tl.where(d > best, block * 4 + 3, best_sub)
        best = tl.maximum(best, d)
    score = tl.max(best)
    token = tl.min(tl.where(best == score, best_sub * SUB_BLOCK + lane, 0x7FFFFFFF))
    maximum = tl.max(tl.where(largest == largest, largest, float("inf")))
    at = wide_row * blocks + chunk
    tl.store(scores + at, score)
    tl.store(tokens + at, token)
    tl.store(maxima + at, maximum)
    if filtered:
        tl.store(masses + at, chunk_mass)


@triton.jit
def _rank_sub_blocks(sub_maxima, order, subs, k, SUBS: tl.constexpr):
    """Writes the sub-blocks by falling maximum; returns the k-th largest maximum, minus infinity if k > subs."""
    mine = tl.arange(0, SUBS)
    value = tl.load(sub_maxima + mine, mask=mine < subs, other=float("-inf"))
    rank = tl.zeros([SUBS], tl.int32)
    for start in range(0, SUBS, 32):
        other = start + tl.arange(0, 32)
        there = tl.load(sub_maxima + other, mask=other < subs, other=float("-inf"))
        before = (there[None, :] > value[:, None]) | (
            (there[None, :] == value[:, None]) & (other[None, :] < mine[:, None])
        )
        rank += tl.sum((before & (other < subs)[None, :]).to(tl.int32), axis=1)
    tl.store(order + rank, mine, mask=mine < subs)
    tl.debug_barrier()  # the order is read by other threads of this program
    return tl.max(tl.where((rank == k - 1) & (mine < subs), value, float("-inf")))


@triton.jit
def _float_key(x):
    """A float as an integer of the same order, -0.0 and subnormals as 0.0; the inverse of `_key_float`."""
    bits = tl.where(tl.abs(x) < 1.1754943508222875e-38, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _key_float(key):
    """Key -1 would be -0.0, which no zero is above."""
    value = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.where(key == -1, -1.1754943508222875e-38, value)


@triton.jit
def _above(
    place, sub_maxima, order, vocab, subs, maximum, to_log2, by_count, t0, t1, t2, t3,
    SUBS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """How many tokens are above each of four thresholds, or their mass, exp((logit - maximum) / T) summed."""
    lowest = tl.minimum(tl.minimum(t0, t1), tl.minimum(t2, t3))
    every = tl.arange(0, SUBS)
    active = tl.sum((tl.load(sub_maxima + every, mask=every < subs, other=float("-inf")) > lowest).to(tl.int32))
    lane = tl.arange(0, SUB_BLOCK)[None, :]
    s0 = tl.zeros([TILE, SUB_BLOCK], tl.float32)
    s1, s2, s3 = s0, s0, s0
    start = 0
    while start < active:
        listed = start + tl.arange(0, TILE)
        sub = tl.load(order + listed, mask=listed < active, other=0)
        token = sub[:, None] * SUB_BLOCK + lane
        value = tl.load(place + token, mask=(token < vocab) & (listed < active)[:, None], other=float("-inf"))
        value = value.to(tl.float32)
        weight = tl.where(by_count, 1.0, tl.exp2((value - maximum) * to_log2))
        s0 += tl.where(value > t0, weight, 0.0)
        s1 += tl.where(value > t1, weight, 0.0)
        s2 += tl.where(value > t2, weight, 0.0)
        s3 += tl.where(value > t3, weight, 0.0)
        start += TILE
    return tl.sum(s0), tl.sum(s1), tl.sum(s2), tl.sum(s3)


@triton.jit
def _best_above(
    place, sub_maxima, order, vocab, subs, key, to_log2, threshold,
    SUBS: tl.constexpr, TILE: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """The token with the best score among those above the threshold."""
    every = tl.arange(0, SUBS)
    active = tl.sum((tl.load(sub_maxima + every, mask=every < subs, other=float("-inf")) > threshold).to(tl.int32))
    lane = tl.arange(0, SUB_BLOCK)[None, :]
    best = tl.full([TILE, SUB_BLOCK], float("-inf"), tl.float32)
    best_token = tl.full([TILE, SUB_BLOCK], 0x7FFFFFFF, tl.int32)
    start = 0
    while start < active:
        listed = start + tl.arange(0, TILE)
        sub = tl.load(order + listed, mask=listed < active, other=0)[:, None]
        token = sub * SUB_BLOCK + lane
        value = tl.load(place + token, mask=(token < vocab) & (listed < active)[:, None], other=float("-inf"))
        value = value.to(tl.float32)
        w0, w1, w2, w3 = tl.randint4x(key, (sub // 4) * SUB_BLOCK + lane)
        output = sub % 4
        word = tl.where(output == 0, w0, tl.where(output == 1, w1, tl.where(output == 2, w2, w3)))
        score = tl.where(value > threshold, value * to_log2 + _noise(word, FAST), float("-inf"))
        # Sub-blocks come in no order of tokens: the lower of equals is chosen by name.
        better = (score > best) | ((score == best) & (score > float("-inf")) & (token < best_token))
        best = tl.where(better, score, best)
        best_token = tl.where(better, token, best_token)
        start += TILE
    top = tl.max(tl.max(best, axis=1), axis=0)
    return tl.min(tl.min(tl.where(best == top, best_token, 0x7FFFFFFF), axis=1), axis=0)


@triton.jit
def _choose_kernel(
    logits, temperatures, top_ks, top_ps, min_ps, seeds, positions,
    scores, tokens, maxima, masses, sub_maxima, order, out_ids, vocab, row_stride, blocks, chunks,
    CHUNKS: tl.constexpr, SUBS: tl.constexpr, FAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = 16
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0)
    wide_row = row.to(tl.int64)
    chunk = tl.arange(0, CHUNKS)
    at = wide_row * blocks + chunk
    here = chunk < chunks
    score = tl.load(scores + at, mask=here, other=float("-inf"))
    chunk_maximum = tl.load(maxima + at, mask=here, other=float("-inf"))
    best = tl.max(score)
    maximum = tl.max(chunk_maximum)
    token = tl.min(tl.where((score == best) & here, tl.load(tokens + at, mask=here, other=0), 0x7FFFFFFF))
    valid = (maximum < float("inf")) & (maximum > float("-inf"))
    temperature = tl.load(temperatures + row)
    top_k = tl.load(top_ks + row)
    top_p = tl.load(top_ps + row)
    min_p = tl.load(min_ps + row)
    by_top_k = (top_k > 0) & (top_k < vocab)
    if valid & (temperature > 0) & (by_top_k | (top_p < 1.0) | (min_p > 0.0)):
        # Of a threshold t let F(t) = count, or mass, of the tokens above it. A token of value v is kept if F(v) is
        # under the target. On the integers of the same order as the floats: F(low) >= target > F(high), and what is
        # kept are the values from high on once high = low + 1.
        place = logits + wide_row * row_stride
        subs = blocks * 4
        sub_maxima += wide_row * subs
        order += wide_row * subs
        to_log2 = tl.minimum(1.4426950408889634 / temperature, 1e30)  # finite, as 0 * infinity is NaN
        philox_key = _philox_key(tl.load(seeds + row), tl.load(positions + row))
        mass_at = tl.load(masses + at, mask=here, other=0.0)
        total = tl.sum(mass_at * tl.exp2((chunk_maximum - maximum) * to_log2))
        bound = _rank_sub_blocks(sub_maxima, order, subs, top_k, SUBS)
        top = _float_key(maximum)
        value = tl.load(place + token).to(tl.float32)
        candidate = _float_key(value)
        kept_from = _float_key(tl.full([], float("-inf"), tl.float32))  # the lowest kept key so far
        if min_p > 0.0:
            kept_from = _float_key(tl.minimum(maximum + tl.log2(min_p) / to_log2, maximum))
        if by_top_k:
            # k sub-blocks reach up to the k-th largest of their maxima, so at least k tokens do.
            low = tl.maximum(kept_from, _float_key(bound)) - 1
            low = tl.where(bound > float("-inf"), low, kept_from - 1)
            low = tl.minimum(tl.maximum(low, -2139095042), top - 1)
            high = top
            target = top_k.to(tl.float32)
            exact = False
            searching = high.to(tl.int64) - low > 1
            while searching:
                gap = high.to(tl.int64) - low
                k0 = (low + gap // 5).to(tl.int32)
                k1 = (low + gap * 2 // 5).to(tl.int32)
                k2 = (low + gap * 3 // 5).to(tl.int32)
                k3 = (low + gap * 4 // 5).to(tl.int32)
                k0 = tl.maximum(k0, low + 1)
                k1 = tl.maximum(k1, low + 1)
                k2 = tl.maximum(k2, low + 1)
                k3 = tl.maximum(k3, low + 1)
                k1 = tl.where((candidate > low) & (candidate < high), candidate, k1)
                f0, f1, f2, f3 = _above(
                    place, sub_maxima, order, vocab, subs, maximum, to_log2, True,
                    _key_float(k0), _key_float(k1), _key_float(k2), _key_float(k3), SUBS, TILE,
                )  # fmt: skip
                low = tl.maximum(low, tl.where(f0 >= target, k0, low))
                low = tl.maximum(low, tl.where(f1 >= target, k1, low))
                low = tl.maximum(low, tl.where(f2 >= target, k2, low))
                low = tl.maximum(low, tl.where(f3 >= target, k3, low))
                high = tl.minimum(high, tl.where(f0 < target, k0, high))
                high = tl.minimum(high, tl.where(f1 < target, k1, high))
                high = tl.minimum(high, tl.where(f2 < target, k2, high))
                high = tl.minimum(high, tl.where(f3 < target, k3, high))
                # Exactly k tokens above low: they are the kept ones.
                exact = (f0 == target) & (k0 == low) | (f1 == target) & (k1 == low)
                exact = exact | (f2 == target) & (k2 == low) | (f3 == target) & (k3 == low)
                # With top_p to come the set itself is needed, else only whether the candidate is in it.
                decided = (top_p >= 1.0) & (candidate >= high)
                searching = (high.to(tl.int64) - low > 1) & (exact == 0) & (decided == 0)
            kept_from = tl.where(exact, low + 1, high)
        low = tl.maximum(kept_from, -2139095041) - 1
        high = kept_from
        target = 0.0
        if top_p < 1.0:
            if kept_from > -2139095041:
                floor = _key_float(low)
                total, f1, f2, f3 = _above(
                    place, sub_maxima, order, vocab, subs, maximum, to_log2, False,
                    floor, floor, floor, floor, SUBS, TILE,
                )  # fmt: skip
            target = top_p * total
            # All tokens under this one together weigh less than (1 - p) of the total; a little more, for rounding.
            reach = tl.log2(tl.maximum((1.0 - top_p) * total, 1e-30) / vocab) - 0.01
            low = tl.maximum(low, _float_key(maximum + reach / to_log2))
            low = tl.minimum(low, top - 1)
            high = top
        # Each round at least quarters the gap or draws from what is above low; the cap only makes a hang impossible.
        rounds = 0
        while (candidate < high) & (rounds < 256):
            rounds += 1
            if candidate <= low:
                token = _best_above(
                    place, sub_maxima, order, vocab, subs, philox_key, to_log2, _key_float(low), SUBS, TILE, FAST
                )
                token = tl.minimum(token, vocab - 1)
                candidate = _float_key(tl.load(place + token).to(tl.float32))
            else:
                gap = high.to(tl.int64) - low
                k0 = tl.maximum((low + gap // 4).to(tl.int32), low + 1)
                k1 = tl.maximum((low + gap // 2).to(tl.int32), low + 1)
                k2 = tl.maximum((low + gap * 3 // 4).to(tl.int32), low + 1)
                f0, f1, f2, f3 = _above(
                    place, sub_maxima, order, vocab, subs, maximum, to_log2, False,
                    _key_float(k0), _key_float(k1), _key_float(k2), _key_float(candidate), SUBS, TILE,
                )  # fmt: skip
                low = tl.maximum(low, tl.where(f0 >= target, k0, low))
                low = tl.maximum(low, tl.where(f1 >= target, k1, low))
                low = tl.maximum(low, tl.where(f2 >= target, k2, low))
                low = tl.maximum(low, tl.where(f3 >= target, candidate, low))
                high = tl.minimum(high, tl.where(f0 < target, k0, high))
                high = tl.minimum(high, tl.where(f1 < target, k1, high))
                high = tl.minimum(high, tl.where(f2 < target, k2, high))
                high = tl.minimum(high, tl.where(f3 < target, candidate, high))
    tl.store(out_ids + row, tl.where(valid, token, -1).to(out_ids.dtype.element_ty))
