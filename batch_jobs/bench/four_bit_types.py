"""4-bit data types side by side, as QLoRA's table 2 has them: absmax int4, FP4, NF4, NF4 with double quantisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from bitsandbytes import functional as bnb
from torch import Tensor

from batch_jobs.bench.reference_model import ReferenceModel
from kernels.nf4_matmul import dequantize_nf4, quantize_nf4

BLOCK = 64


def compare(
    model: ReferenceModel, token_ids: list[int], context: int, progress: Callable[[], None]
) -> dict[str, float]:
    """Perplexity by data type, all in blocks of 64 with one absmax each."""
    scores: dict[str, float] = {}
    for name, quantised in TYPES.items():
        weights = {linear: quantised(weight) for linear, weight in model.weights().items()}
        with model.with_weights(weights):
            scores[name] = model.perplexity(token_ids, context)
        progress()
    return scores


def _int4(weight: Tensor) -> Tensor:
    """-7 .. 7 times absmax / 7 (QLoRA, section 2; bitsandbytes has no such type)."""
    blocks = weight.reshape(-1, BLOCK)
    step = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-38) / 7
    return (torch.round(blocks / step) * step).reshape(weight.shape)


def _fp4(weight: Tensor) -> Tensor:
    """bitsandbytes' own, whose table is E2M1 scaled to 1."""
    data, state = bnb.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="fp4")
    return bnb.dequantize_4bit(data, state).reshape(weight.shape)


def _nf4(weight: Tensor) -> Tensor:
    return dequantize_nf4(quantize_nf4(weight, BLOCK))


def _nf4_double(weight: Tensor) -> Tensor:
    return dequantize_nf4(quantize_nf4(weight, BLOCK, double_quant=True))


TYPES = {"int4 (absmax)": _int4, "fp4": _fp4, "nf4": _nf4, "nf4, double quantisation": _nf4_double}
