"""Quantised matrices as the tensors of a checkpoint, and back where a pass goes on with them; it knows no file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from batch_jobs.quantize.fp8 import Fp8Weight, quantize_fp8
from batch_jobs.quantize.grid import round_to_nearest
from batch_jobs.quantize.settings import NF4_BLOCK, QuantizeSettings
from batch_jobs.quantize.source_model import SourceTensors
from kernels.bitsandbytes_layout import pack_bnb_int8, pack_bnb_nf4
from kernels.checkpoint_layouts import IntegerWeight, pack_awq, pack_gptq, unpack_awq, unpack_gptq
from kernels.int8_matmul import Int8Weight, dequantize_int8, quantize_int8
from kernels.nf4_matmul import Nf4Weight, dequantize_nf4, quantize_nf4

QuantizedMatrix = IntegerWeight | Nf4Weight | Int8Weight | Fp8Weight | Tensor
"""A dense one is [N, K] fp32."""


def quantize_by_weight(weight: Tensor, settings: QuantizeSettings) -> QuantizedMatrix:
    """[N, K] fp32 by a method that looks at nothing else."""
    match settings.method:
        case "int8":
            return quantize_int8(weight)
        case "nf4":
            return quantize_nf4(weight, NF4_BLOCK, settings.double_quant)
        case "fp8":
            return quantize_fp8(weight)
        case _:
            return round_to_nearest(weight, settings.grid)


def dense(matrix: QuantizedMatrix) -> Tensor:
    """[N, K] fp32"""
    if isinstance(matrix, Tensor):
        return matrix
    if isinstance(matrix, Int8Weight):
        return dequantize_int8(matrix)
    return dequantize_nf4(matrix) if isinstance(matrix, Nf4Weight) else matrix.dequantize()


def matrix_tensors(name: str, matrix: QuantizedMatrix, settings: QuantizeSettings) -> dict[str, Tensor]:
    """By their names in the checkpoint; `name` is the matrix' own, without .weight."""
    return {f"{name}.{kind}": tensor.cpu() for kind, tensor in _tensors(matrix, settings).items()}


def block_weights(
    stored: Mapping[str, Tensor], prefix: str, source: SourceTensors, settings: QuantizeSettings
) -> dict[str, Tensor]:
    """A finished block's weights fp32, norms and biases as stored, by names without the prefix and with .weight."""
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in stored.items()
        if name.endswith((".weight", ".bias")) and tensor.is_floating_point()
    }
    if settings.layout == "dense":
        return weights
    for name, (rows, columns) in source.sizes.items():
        kinds = ("qweight", "qzeros", "scales", *(["g_idx"] if settings.layout == "gptq" else []))
        packed = {kind: stored[f"{prefix}{name}.{kind}"] for kind in kinds}
        unpacked = _unpack(packed, settings)
        assert unpacked.codes.shape == (rows, columns), f"{name}: the layout gave {list(unpacked.codes.shape)} back"
        weights[f"{name}.weight"] = unpacked.dequantize()
    return weights


def _tensors(matrix: QuantizedMatrix, settings: QuantizeSettings) -> Mapping[str, Tensor]:
    if isinstance(matrix, Tensor):
        return {"weight": matrix.to(torch.bfloat16)}
    if isinstance(matrix, Nf4Weight):
        return pack_bnb_nf4(matrix)
    if isinstance(matrix, Int8Weight):
        return pack_bnb_int8(matrix)
    if isinstance(matrix, Fp8Weight):
        return {"weight": matrix.data, "weight_scale": matrix.scale}
    return pack_awq(matrix) if settings.layout == "awq" else pack_gptq(matrix)


def _unpack(packed: Mapping[str, Tensor], settings: QuantizeSettings) -> IntegerWeight:
    if settings.layout == "awq":
        return unpack_awq(**packed)
    return unpack_gptq(**packed, bits=settings.bits)
