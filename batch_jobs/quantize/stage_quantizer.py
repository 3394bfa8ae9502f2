"""GPTQ or AWQ for matrices that read the same inputs, and the error each is left with; it knows no model, no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from batch_jobs.quantize.awq import keep_channels, salient_channels, search_clipping, search_scales
from batch_jobs.quantize.gptq import GptqSettings, gptq
from batch_jobs.quantize.grid import round_to_nearest
from batch_jobs.quantize.input_statistics import InputStatistics, output_error
from batch_jobs.quantize.settings import QuantizeSettings
from kernels.checkpoint_layouts import IntegerWeight

NEVER_CLIPPED = ("self_attn.q_proj", "self_attn.k_proj")
"""As in the authors' code: their product is a score, in which an error of a single weight does not average out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixError:
    """||(Q - W) x||^2, weighted mean over calibration tokens: what GPTQ and AWQ make small."""

    error: float
    rtn_error: float
    """Rounding to nearest on the same kind of grid."""
    relative: float
    """The error over ||W x||^2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedStage:
    matrices: dict[str, IntegerWeight | Tensor]
    """By name; a dense one is [N, K] fp32"""
    input_scales: Tensor | None
    """[K]: what the operation before is to be divided by; the matrices are multiplied by it already"""
    errors: dict[str, MatrixError]


def on_device(stage: QuantizedStage, device: torch.device) -> QuantizedStage:
    scales = stage.input_scales
    return replace(
        stage,
        matrices={name: _moved(matrix, device) for name, matrix in stage.matrices.items()},
        input_scales=None if scales is None else scales.to(device),
    )


def quantize_stage(
    weights: Mapping[str, Tensor],
    statistics: InputStatistics,
    settings: QuantizeSettings,
    storable: Callable[[Tensor], Tensor] | None,
) -> QuantizedStage:
    """weights: [N, K] fp32 by name, on the statistics' device.

    storable: the scales nearest to those wished for by which the operation before can be divided as it is stored
    (bf16 norms); None where it cannot be divided.
    """
    if settings.keep_salient:
        return _with_kept_channels(weights, statistics, settings)
    if settings.method == "gptq":
        return _by_gptq(weights, statistics, settings)
    return _by_awq(weights, statistics, settings, storable)


def _by_gptq(weights: Mapping[str, Tensor], statistics: InputStatistics, settings: QuantizeSettings) -> QuantizedStage:
    gptq_settings = GptqSettings(
        grid=settings.grid,
        damping=settings.damping,
        act_order=settings.act_order,
        static_groups=settings.static_groups,
    )
    matrices: dict[str, IntegerWeight | Tensor] = {}
    errors = {}
    for name, weight in weights.items():
        matrices[name] = quantized = gptq(weight, statistics.hessian, gptq_settings)
        errors[name] = _error(weight, quantized.dequantize(), statistics.hessian, settings)
    return QuantizedStage(matrices=matrices, input_scales=None, errors=errors)


def _by_awq(
    weights: Mapping[str, Tensor],
    statistics: InputStatistics,
    settings: QuantizeSettings,
    storable: Callable[[Tensor], Tensor] | None,
) -> QuantizedStage:
    hessian = statistics.hessian
    scales = torch.ones_like(statistics.magnitude)
    if storable is not None:
        scales = storable(search_scales([*weights.values()], hessian, statistics.magnitude, settings.grid).scales)
    scaled_hessian = hessian / torch.outer(scales, scales)
    matrices: dict[str, IntegerWeight | Tensor] = {}
    errors = {}
    for name, weight in weights.items():
        scaled = weight * scales
        kept = 1.0 if name in NEVER_CLIPPED else search_clipping(scaled, scaled_hessian, settings.grid)
        matrices[name] = quantized = round_to_nearest(scaled, settings.grid, kept)
        errors[name] = _error(weight, quantized.dequantize() / scales, hessian, settings)
    return QuantizedStage(matrices=matrices, input_scales=None if storable is None else scales, errors=errors)


def _with_kept_channels(
    weights: Mapping[str, Tensor], statistics: InputStatistics, settings: QuantizeSettings
) -> QuantizedStage:
    kept = salient_channels(statistics.magnitude, settings.keep_salient)
    matrices: dict[str, IntegerWeight | Tensor] = {}
    errors = {}
    for name, weight in weights.items():
        matrices[name] = mixed = keep_channels(weight, kept, settings.grid)
        errors[name] = _error(weight, mixed, statistics.hessian, settings)
    return QuantizedStage(matrices=matrices, input_scales=None, errors=errors)


def _moved(matrix: IntegerWeight | Tensor, device: torch.device) -> IntegerWeight | Tensor:
    if isinstance(matrix, Tensor):
        return matrix.to(device)
    return replace(
        matrix,
        codes=matrix.codes.to(device),
        scales=matrix.scales.to(device),
        zeros=matrix.zeros.to(device),
        group_of=matrix.group_of.to(device),
    )


def _error(weight: Tensor, quantized: Tensor, hessian: Tensor, settings: QuantizeSettings) -> MatrixError:
    rounded = round_to_nearest(weight, settings.grid).dequantize()
    error = output_error(quantized - weight, hessian)
    power = output_error(weight, hessian)
    return MatrixError(
        error=error, rtn_error=output_error(rounded - weight, hessian), relative=error / power if power else 0.0
    )
