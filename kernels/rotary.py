"""Rotary position embedding (rotate-half, as Hugging Face's Llama) and the write into the cache; knows no layer.

q', k' = (a cos - b sin, b cos + a sin) for the halves a, b of each head. Queries are not scaled here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels.kv_layout import LayerCache, write_tokens
from kernels.rms_norm import rms_norm_reference


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeTables:
    cos: Tensor
    """[max_positions, D/2] fp32"""
    sin: Tensor


def rope_tables(
    head_dim: int,
    max_positions: int,
    theta: float = 10000.0,
    scaling: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> RopeTables:
    """`scaling` is the rope_scaling (or rope_parameters) of a Hugging Face config: default, linear or llama3."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = _scaled(1.0 / theta**exponents, scaling or {})
    angles = torch.arange(max_positions).float()[:, None] * frequencies[None, :]
    return RopeTables(cos=angles.cos().to(device), sin=angles.sin().to(device))


def _scaled(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    raise ValueError(f"rope scaling {kind!r} is not supported: only default, linear and llama3 are")


def _llama3(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    original = float(scaling["original_max_position_embeddings"])
    wavelengths = 2 * math.pi / frequencies
    smooth = (original / wavelengths - low) / (high - low)
    between = (1 - smooth) * frequencies / factor + smooth * frequencies
    stretched = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    is_between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(is_between, between, stretched)


def rotary_kv_write(
    qkv: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    tables: RopeTables,
    kv_cache: LayerCache,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """qkv [T, (H + 2 KVH) * D] fp32, positions and slot_mapping [T] int64 -> rotated queries [T, H, D] fp32.

    Row t's key and value go to slot block * block_size + offset = slot_mapping[t], nowhere where that is negative.
    `q_norm`, `k_norm` [D]: RMS norm of each head before the rotation (Qwen3).
    """
    if not qkv.is_cpu:
        return rotary_kv_write_reference(qkv, positions, slot_mapping, tables, kv_cache, q_norm, k_norm, eps)
    cos, sin = tables.cos, tables.sin
    return _cpu().rotary_kv_write(qkv, positions, slot_mapping, cos, sin, kv_cache, q_norm, k_norm, eps)


def rotary_kv_write_reference(
    qkv: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    tables: RopeTables,
    kv_cache: LayerCache,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    kv_heads = kv_cache.kv_heads
    heads = qkv.unflatten(1, (-1, kv_cache.head_dim))
    q, k, v = heads.split([heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    if q_norm is not None:
        q = rms_norm_reference(q, q_norm, eps)
    if k_norm is not None:
        k = rms_norm_reference(k, k_norm, eps)
    cos, sin = tables.cos[positions][:, None], tables.sin[positions][:, None]
    write_tokens(kv_cache, slot_mapping, _rotate(k, cos, sin), v)
    return _rotate(q, cos, sin)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = heads.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


@cache
def _cpu() -> Any:
    from kernels.cpu import rotary

    return rotary
