"""Rotary embedding of a prefill's queries and keys and the write into the paged cache, one launch; knows no sequence.

q', k' = (a cos - b sin, b cos + a sin) for the halves a, b of each head, after an optional RMS norm of each head. A
program takes one token and a tile of heads of one kind (q, k or v), so that cos and sin are read once for the tile.
Decode steps do not come here: `decode_attention` rotates by itself.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.kv_cache import PagedKv
from kernels.rotary import RopeTables


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryConfig:
    head_tile: int = 8
    num_warps: int = 2


def default_config(kv_heads: int) -> RotaryConfig:
    """8 heads of 128 in bf16 are 2 KiB a program: two warps with two 16-byte loads of each half a thread."""
    return RotaryConfig(head_tile=min(8, triton.next_power_of_2(kv_heads)), num_warps=2 if kv_heads >= 8 else 1)


def rotary_kv_write(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    tables: RopeTables,
    kv: PagedKv,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    *,
    out: Tensor | None = None,
    config: RotaryConfig | None = None,
) -> Tensor:
    """qkv [T, (H + 2 KVH) * D], positions [T] int, slots [T] int -> rotated queries, fresh, [T, H, D] of qkv's dtype.

    Row t's key and value go to slot block * block_size + offset = slots[t], nowhere where that is negative. `q_norm`,
    `k_norm` [D] fp32: RMS norm of each head before the rotation (Qwen3). qkv is left as it was.
    """
    tokens, width = qkv.shape
    kv_heads, head_dim = kv.kv_heads, kv.head_dim
    heads = width // head_dim - 2 * kv_heads
    if heads <= 0 or width % head_dim:
        raise ValueError(f"rows of {width} do not hold heads of {head_dim} beside {kv_heads} keys and values")
    if not (qkv.is_contiguous() and kv.keys.is_contiguous() and kv.values.is_contiguous()):
        raise ValueError("qkv and the cache must be contiguous")
    config = config or default_config(kv_heads)
    out = torch.empty((tokens, heads, head_dim), dtype=qkv.dtype, device=qkv.device) if out is None else out
    if tokens == 0:
        return out
    q_tiles, kv_tiles = triton.cdiv(heads, config.head_tile), triton.cdiv(kv_heads, config.head_tile)
    _rotary_kernel[(tokens, q_tiles + 2 * kv_tiles)](
        qkv,
        positions,
        slots,
        tables.cos,
        tables.sin,
        tables.cos if q_norm is None else q_norm,
        tables.cos if k_norm is None else k_norm,
        kv.keys,
        kv.values,
        out,
        eps,
        HEADS=heads,
        KV_HEADS=kv_heads,
        D=head_dim,
        HALF_PADDED=triton.next_power_of_2(head_dim // 2),
        BLOCK_SIZE=kv.block_size,
        HEAD_TILE=config.head_tile,
        NORM_Q=q_norm is not None,
        NORM_K=k_norm is not None,
        num_warps=config.num_warps,
    )
    return out


@triton.jit
def _rotary_kernel(
    qkv,
    positions,
    slots,
    cos,
    sin,
    q_norm,
    k_norm,
    keys,
    values,
    out,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    NORM_Q: tl.constexpr,
    NORM_K: tl.constexpr,
):
    HALF: tl.constexpr = D // 2
    Q_TILES: tl.constexpr = (HEADS + HEAD_TILE - 1) // HEAD_TILE
    KV_TILES: tl.constexpr = (KV_HEADS + HEAD_TILE - 1) // HEAD_TILE
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    d = tl.arange(0, HALF_PADDED)
    row = qkv + token * ((HEADS + 2 * KV_HEADS) * D)
    in_head = d < HALF

    if tile < Q_TILES:
        head = tile * HEAD_TILE + tl.arange(0, HEAD_TILE)
        present = (head < HEADS)[:, None] & in_head[None, :]
        a, b = _load_halves(row, head, d, present, D)
        a, b = _rotated(a, b, positions, token, cos, sin, q_norm, eps, d, in_head, D, NORM_Q)
        to = out + token * (HEADS * D) + head[:, None] * D + d[None, :]
        tl.store(to, a.to(out.dtype.element_ty), mask=present)
        tl.store(to + HALF, b.to(out.dtype.element_ty), mask=present)
    else:
        slot = tl.load(slots + token).to(tl.int64)
        if slot >= 0:
            is_key = tile < Q_TILES + KV_TILES
            head = (tile - Q_TILES - tl.where(is_key, 0, KV_TILES)) * HEAD_TILE + tl.arange(0, HEAD_TILE)
            present = (head < KV_HEADS)[:, None] & in_head[None, :]
            block = slot // BLOCK_SIZE * (KV_HEADS * BLOCK_SIZE * D) + slot % BLOCK_SIZE * D
            at = block + head[:, None] * (BLOCK_SIZE * D) + d[None, :]
            if is_key:
                a, b = _load_halves(row, HEADS + head, d, present, D)
                a, b = _rotated(a, b, positions, token, cos, sin, k_norm, eps, d, in_head, D, NORM_K)
                tl.store(keys + at, a.to(keys.dtype.element_ty), mask=present)
                tl.store(keys + at + HALF, b.to(keys.dtype.element_ty), mask=present)
            else:
                a, b = _load_halves(row, HEADS + KV_HEADS + head, d, present, D)
                tl.store(values + at, a.to(values.dtype.element_ty), mask=present)
                tl.store(values + at + HALF, b.to(values.dtype.element_ty), mask=present)


@triton.jit
def _load_halves(row, head, d, present, D: tl.constexpr):
    at = row + head[:, None] * D + d[None, :]
    a = tl.load(at, mask=present, other=0.0).to(tl.float32)
    b = tl.load(at + D // 2, mask=present, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def _rotated(a, b, positions, token, cos, sin, norm, eps, d, in_head, D: tl.constexpr, NORM: tl.constexpr):
    angle = tl.load(positions + token).to(tl.int64) * (D // 2) + d
    c = tl.load(cos + angle, mask=in_head, other=0.0)[None, :]
    s = tl.load(sin + angle, mask=in_head, other=0.0)[None, :]
    if NORM:
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]
        a = a * scale * tl.load(norm + d, mask=in_head, other=0.0)[None, :]
        b = b * scale * tl.load(norm + D // 2 + d, mask=in_head, other=0.0)[None, :]
    return a * c - b * s, b * c + a * s


def rotary_kv_write_reference(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    tables: RopeTables,
    kv: PagedKv,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """The same in float64; the queries come back in float64, the cache is written in its own dtype."""
    heads = qkv.double().unflatten(1, (-1, kv.head_dim))
    q, k, v = heads.split([heads.shape[1] - 2 * kv.kv_heads, kv.kv_heads, kv.kv_heads], dim=1)
    q, k = rotated_reference(q, positions, tables, q_norm, eps), rotated_reference(k, positions, tables, k_norm, eps)
    kept = slots >= 0
    block, offset = slots[kept].long() // kv.block_size, slots[kept].long() % kv.block_size
    kv.keys[block, :, offset] = k[kept].to(kv.keys.dtype)
    kv.values[block, :, offset] = v[kept].to(kv.values.dtype)
    return q


def rotated_reference(
    heads: Tensor, positions: Tensor, tables: RopeTables, norm: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """heads [T, N, D] -> the same in float64, normed and rotated to `positions` [T]."""
    heads = heads.double()
    if norm is not None:
        heads = heads * torch.rsqrt(heads.pow(2).mean(-1, keepdim=True) + eps) * norm.double()
    a, b = heads.chunk(2, dim=-1)
    cos, sin = (table[positions.long()].double()[:, None] for table in (tables.cos, tables.sin))
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
