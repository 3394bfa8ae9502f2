"""Penalties and biases on rows of logits, in place, from token histories that live on the GPU; knows no request.

Repetition over prompt and output: a positive logit is divided by it, another one multiplied. Then presence and
frequency over the output: minus presence if the token is in it, minus frequency times its count.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.launch import pdl
from kernels.gpu.quantized_rows import round_to

BLOCK = 1024
IN_PROMPT = tl.constexpr(1 << 30)


def apply_penalties(
    logits: Tensor,
    history: Tensor,
    slots: Tensor,
    lengths: Tensor,
    prompt_lengths: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
    counts: Tensor | None = None,
) -> Tensor:
    """logits [R, V] fp32 or bf16, changed in place and returned.

    history [slots, max_context] int32: row r's tokens are history[slots[r], : lengths[r]], of which the first
    prompt_lengths[r] are its prompt. slots, lengths, prompt_lengths [R] int32; repetition (1 = none), presence and
    frequency (0 = none) [R] fp32. A row without a penalty is left untouched. `counts` [R, V] int32 is scratch.
    """
    rows, vocab = logits.shape
    if rows == 0:
        return logits
    counts = torch.empty(rows, vocab, dtype=torch.int32, device=logits.device) if counts is None else counts
    counts.zero_()
    on = pdl(logits)
    launch = {"launch_pdl": True} if on else {}
    _count_kernel[(triton.cdiv(history.shape[1], BLOCK), rows)](
        history, slots, lengths, prompt_lengths, repetition, presence, frequency, counts, vocab, history.stride(0),
        counts.stride(0), BLOCK=BLOCK, PDL=on, num_warps=4, **launch,
    )  # fmt: skip
    _penalise_kernel[(triton.cdiv(vocab, BLOCK), rows)](
        logits, counts, repetition, presence, frequency, vocab, logits.stride(0), counts.stride(0),
        BLOCK=BLOCK, PDL=on, num_warps=4, **launch,
    )  # fmt: skip
    return logits


def apply_logit_bias(logits: Tensor, row_ids: Tensor, token_ids: Tensor, values: Tensor) -> Tensor:
    """logits[row, token] += value for each of [entries] (int, int, fp32), in place; minus infinity bans a token.

    An entry with a negative row adds nothing, so that a captured graph has a fixed number of entries.
    """
    absent = row_ids < 0
    values = values.to(logits.dtype).masked_fill(absent, 0)
    index = (row_ids.long().clamp(min=0), token_ids.long().masked_fill(absent, 0))
    return logits.index_put_(index, values, accumulate=True)


def apply_penalties_reference(
    logits: Tensor,
    history: Tensor,
    slots: Tensor,
    lengths: Tensor,
    prompt_lengths: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> Tensor:
    """[R, V] float64; the logits are left as they are."""
    out = logits.double()
    for row in range(len(out)):
        tokens = history[int(slots[row]), : int(lengths[row])].long()
        seen = tokens.unique()
        values = out[row, seen]
        out[row, seen] = torch.where(values > 0, values / float(repetition[row]), values * float(repetition[row]))
        counts = torch.bincount(tokens[int(prompt_lengths[row]) :], minlength=out.shape[1])
        out[row] -= counts * float(frequency[row]) + (counts > 0) * float(presence[row])
    return out


@triton.jit
def _row_has_penalty(repetition, presence, frequency, row):
    unrepeated = tl.load(repetition + row) != 1.0
    return unrepeated | (tl.load(presence + row) != 0.0) | (tl.load(frequency + row) != 0.0)


@triton.jit
def _count_kernel(
    history, slots, lengths, prompt_lengths, repetition, presence, frequency, counts, vocab, history_stride,
    counts_stride, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """counts = how often a token is in the output, plus 2^30 if it is in the prompt."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(1)
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    length = tl.load(lengths + row)
    if (tl.program_id(0) * BLOCK < length) & _row_has_penalty(repetition, presence, frequency, row):
        start = tl.load(slots + row).to(tl.int64) * history_stride
        token = tl.load(history + start + position, mask=position < length, other=-1)
        exists = (token >= 0) & (token < vocab)
        in_prompt = position < tl.load(prompt_lengths + row)
        count = counts + row.to(tl.int64) * counts_stride + token
        tl.atomic_or(count, IN_PROMPT, mask=exists & in_prompt, sem="relaxed")
        tl.atomic_add(count, 1, mask=exists & (in_prompt == 0), sem="relaxed")


@triton.jit
def _penalise_kernel(
    logits, counts, repetition, presence, frequency, vocab, logits_stride, counts_stride,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(1)
    if _row_has_penalty(repetition, presence, frequency, row):
        token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        wide_row = row.to(tl.int64)
        count = tl.load(counts + wide_row * counts_stride + token, mask=token < vocab, other=0)
        seen = count != 0
        place = logits + wide_row * logits_stride + token
        value = tl.load(place, mask=(token < vocab) & seen, other=0.0).to(tl.float32)
        factor = tl.load(repetition + row)
        value = tl.where(value > 0, value / factor, value * factor)
        in_output = (count & (IN_PROMPT - 1)).to(tl.float32)
        value -= in_output * tl.load(frequency + row)
        value -= tl.where(in_output > 0, tl.load(presence + row), 0.0)
        tl.store(place, round_to(value, logits.dtype.element_ty), mask=(token < vocab) & seen)
