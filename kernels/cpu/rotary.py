"""Rotary embedding of a row's queries and keys and the write of its keys and values into the cache, on raw bytes."""

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.compile import inline, kernel
from kernels.cpu.pool import float_bits, launch, num_threads
from kernels.cpu.rows import normalise, rows_per_item
from kernels.cpu.simd import (
    LANES,
    add,
    f32_bits,
    f32_of_bits,
    get_f32,
    get_i64,
    load_f32,
    mul,
    set_f32,
    set_i16,
    store_f32,
    sub,
)
from kernels.kv_layout import LayerCache

ROUND, ONE_BIT, UPPER = np.int32(0x7FFF), np.int32(1), np.int32(16)


@inline
def _rotate(head, out, cos, sin, half) -> None:
    """out = (a cos - b sin, b cos + a sin) for the halves a, b of a head."""
    whole = half // LANES * LANES
    for i in range(0, whole, LANES):
        a, b = load_f32(head + 4 * i), load_f32(head + 4 * (half + i))
        c, s = load_f32(cos + 4 * i), load_f32(sin + 4 * i)
        store_f32(out + 4 * i, sub(mul(a, c), mul(b, s)))
        store_f32(out + 4 * (half + i), add(mul(b, c), mul(a, s)))
    for i in range(whole, half):
        a, b = get_f32(head + 4 * i), get_f32(head + 4 * (half + i))
        c, s = get_f32(cos + 4 * i), get_f32(sin + 4 * i)
        set_f32(out + 4 * i, a * c - b * s)
        set_f32(out + 4 * (half + i), b * c + a * s)


@inline
def _set_bf16(address, value) -> None:
    """Round to nearest even."""
    bits = f32_bits(value)
    rounded = bits + ROUND + ((bits >> UPPER) & ONE_BIT)
    set_i16(address, np.int16(rounded >> UPPER))


@inline
def _store_key(head, target, offset, head_dim, block_size, pairing) -> None:
    for d in range(head_dim):
        value = get_f32(head + 4 * d)
        if pairing == 2:
            _set_bf16(target + ((d >> 1) * block_size + offset) * 4 + (d & 1) * 2, value)
        else:
            set_f32(target + (d * block_size + offset) * 4, value)


@inline
def _store_value(head, target, offset, head_dim, pairing) -> None:
    for d in range(head_dim):
        value = get_f32(head + 4 * d)
        if pairing == 2:
            _set_bf16(target + ((offset >> 1) * head_dim + d) * 4 + (offset & 1) * 2, value)
        else:
            set_f32(target + (offset * head_dim + d) * 4, value)


@kernel
def _rotary_rows(args, item, worker) -> None:
    qkv, q_out, positions, slots, cos, sin = args[0], args[1], args[2], args[3], args[4], args[5]
    keys, values, block_stride, block_size, pairing = args[6], args[7], args[8], args[9], args[10]
    num_rows, heads, kv_heads, head_dim, rows_each = args[11], args[12], args[13], args[14], args[15]
    q_norm, k_norm, eps = args[16], args[17], f32_of_bits(args[18])
    head_bytes, half = 4 * head_dim, head_dim // 2
    rotated = args[19] + worker * 2 * head_bytes
    normed = rotated + head_bytes
    cache_bytes = head_bytes * block_size // pairing
    for row in range(item * rows_each, min(num_rows, (item + 1) * rows_each)):
        source = qkv + row * (heads + 2 * kv_heads) * head_bytes
        angle = get_i64(positions + 8 * row) * half * 4
        for head in range(heads):
            h = source + head * head_bytes
            if q_norm != 0:
                normalise(h, q_norm, normed, head_dim, eps)
                h = normed
            target = q_out + (row * heads + head) * head_bytes
            _rotate(h, target, cos + angle, sin + angle, half)
        slot = get_i64(slots + 8 * row)
        if slot < 0:
            continue
        block, offset = slot // block_size * block_stride, slot % block_size
        for head in range(kv_heads):
            h = source + (heads + head) * head_bytes
            if k_norm != 0:
                normalise(h, k_norm, normed, head_dim, eps)
                h = normed
            _rotate(h, rotated, cos + angle, sin + angle, half)
            k = keys + block + head * cache_bytes
            _store_key(rotated, k, offset, head_dim, block_size, pairing)
            v = values + block + head * cache_bytes
            h = source + (heads + kv_heads + head) * head_bytes
            _store_value(h, v, offset, head_dim, pairing)


def rotary_kv_write(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache: LayerCache,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """qkv [T, (H + 2 KVH) * D] fp32, positions and slots [T] int64, all contiguous."""
    keys = cache.keys
    kv_heads, block_size, pairing = keys.shape[1], keys.shape[3], keys.shape[4]
    head_dim = cache.values.shape[3]
    num_rows = qkv.shape[0]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    out = torch.empty((num_rows, heads, head_dim))
    scratch = torch.empty(num_threads() * 2 * head_dim)
    rows_each = rows_per_item(4 * qkv.shape[1])
    launch(
        _rotary_rows,
        -(-num_rows // rows_each),
        qkv.data_ptr(),
        out.data_ptr(),
        positions.data_ptr(),
        slots.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        keys.data_ptr(),
        cache.values.data_ptr(),
        keys.stride(0) * keys.element_size(),
        block_size,
        pairing,
        num_rows,
        heads,
        kv_heads,
        head_dim,
        rows_each,
        0 if q_norm is None else q_norm.data_ptr(),
        0 if k_norm is None else k_norm.data_ptr(),
        float_bits(eps),
        scratch.data_ptr(),
    )
    return out
