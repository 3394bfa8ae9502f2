"""Paged attention and what fills its cache, on raw bytes; knows no scheduler: decode and prefill rows are the same to it.

A piece of work is a few consecutive rows and one kv head: their query heads form tiles of at most six, as in the
dense product. Every score is a chain over the head's dimensions, every output a chain over tokens from position 0 up.
"""

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.compile import inline, kernel
from kernels.cpu.dense import accumulate_bf16, accumulate_f32
from kernels.cpu.exponential import exp
from kernels.cpu.pool import float_bits, launch, num_threads
from kernels.cpu.simd import (
    LANES,
    add,
    f32_of_bits,
    get_f32,
    get_i32,
    get_i64,
    lane_max,
    lane_sum,
    load_f32,
    maximum,
    mul,
    set_f32,
    splat_f32,
    store_f32,
    sub,
)
from kernels.cpu.tile import ROWS, store_tile, tile_rows, with_rows
from kernels.kv_layout import LayerCache

ZERO, ONE = np.float32(0), np.float32(1)
# a lane of the cache: a pair of bf16 or one fp32
LANE_BYTES = 4
LOWEST = np.float32(-np.inf)
# between the rows of scores: a multiple of 4096 bytes would put them all in the same cache set
SCORE_PADDING = 2 * LANES


@inline
def _scores_bf16(tile, q, key, step, head_dim, scores, stride):
    """scores[r, :16] = q[r] . keys of sixteen slots"""
    store_tile(accumulate_bf16(tile, q, 4 * head_dim, key, step, head_dim), scores, stride)


@inline
def _scores_f32(tile, q, key, step, head_dim, scores, stride):
    store_tile(accumulate_f32(tile, q, 4 * head_dim, key, step, head_dim), scores, stride)


@inline
def _mix_bf16(tile, p, p_stride, values, blocks, block_stride, step, block_size, context, out, stride):
    """out[r, :16] = p[r, :context] @ values, for sixteen of the head's dimensions"""
    for first in range(0, context, block_size):
        block = values + np.int64(get_i32(blocks + 4 * (first // block_size))) * block_stride
        tokens = min(block_size, context - first)
        tile = accumulate_bf16(tile, p + 4 * first, p_stride, block, step, tokens)
    store_tile(tile, out, stride)


@inline
def _mix_f32(tile, p, p_stride, values, blocks, block_stride, step, block_size, context, out, stride):
    for first in range(0, context, block_size):
        block = values + np.int64(get_i32(blocks + 4 * (first // block_size))) * block_stride
        tokens = min(block_size, context - first)
        tile = accumulate_f32(tile, p + 4 * first, p_stride, block, step, tokens)
    store_tile(tile, out, stride)


@inline
def _softmax(scores, context, padded):
    """scores[:context] become e^(s - max), the rest up to padded 0; returns their sum."""
    whole = (context + LANES - 1) // LANES * LANES
    for i in range(context, whole):
        set_f32(scores + 4 * i, LOWEST)
    lanes = splat_f32(LOWEST)
    for i in range(0, whole, LANES):
        lanes = maximum(load_f32(scores + 4 * i), lanes)
    largest, total = splat_f32(lane_max(lanes)), splat_f32(ZERO)
    for i in range(0, whole, LANES):
        p = exp(sub(load_f32(scores + 4 * i), largest))
        store_f32(scores + 4 * i, p)
        total = add(total, p)
    for i in range(whole, padded, LANES):
        store_f32(scores + 4 * i, splat_f32(ZERO))
    return lane_sum(total)


@inline
def _attend(score, mix, args, item, worker):
    q, out, keys, values = args[0], args[1], args[2], args[3]
    tables, table_stride, sequence_of, positions = args[4], args[5], args[6], args[7]
    num_rows, heads, kv_heads, head_dim = args[8], args[9], args[10], args[11]
    block_size, block_stride, scale = args[12], args[13], splat_f32(f32_of_bits(args[14]))
    scratch = args[15] + worker * args[16]
    score_stride, rows_each, pairing = args[17], args[18], args[19]
    group = heads // kv_heads
    kv_head, end = item % kv_heads, min(num_rows, (item // kv_heads + 1) * rows_each)
    head_bytes = head_dim * block_size * LANE_BYTES // pairing
    vectors = rows_each * group
    wide = (head_dim + LANES - 1) // LANES * LANES
    queries, results = scratch, scratch + vectors * 4 * wide
    scores = results + vectors * 4 * wide
    row = item // kv_heads * rows_each
    while row < end:
        sequence = get_i32(sequence_of + 4 * row)
        last = row + 1
        longest = get_i32(positions + 4 * row) + 1
        while last < end and get_i32(sequence_of + 4 * last) == sequence:
            longest = max(longest, get_i32(positions + 4 * last) + 1)
            last += 1
        context = np.int64(longest)
        count = (last - row) * group
        blocks = tables + np.int64(sequence) * table_stride
        for r in range(row, last):
            source = q + (r * heads + kv_head * group) * 4 * head_dim
            for i in range(0, group * head_dim):
                set_f32(queries + ((r - row) * group * head_dim + i) * 4, get_f32(source + 4 * i))
        tiles = (count + ROWS - 1) // ROWS
        padded = (context + block_size - 1) // block_size * block_size
        for first in range(0, context, block_size):
            block = np.int64(get_i32(blocks + 4 * (first // block_size))) * block_stride
            key = keys + block + kv_head * head_bytes
            for panel in range(0, block_size, LANES):
                vector = 0
                for tile in range(tiles):
                    some = tile_rows(count - vector, tiles - tile)
                    with_rows(
                        score,
                        some,
                        queries + vector * 4 * head_dim,
                        key + panel * LANE_BYTES,
                        block_size * LANE_BYTES,
                        head_dim,
                        scores + vector * score_stride + 4 * (first + panel),
                        score_stride,
                    )
                    vector += some
        for vector in range(count):
            own = np.int64(get_i32(positions + 4 * (row + vector // group))) + 1
            s = scores + vector * score_stride
            for i in range(0, own, LANES):
                store_f32(s + 4 * i, mul(load_f32(s + 4 * i), scale))
            total = _softmax(s, own, padded)
            set_f32(s + score_stride - 4, ONE / total)
        for dim in range(0, head_dim, LANES):
            vector = 0
            for tile in range(tiles):
                some = tile_rows(count - vector, tiles - tile)
                with_rows(
                    mix,
                    some,
                    scores + vector * score_stride,
                    score_stride,
                    values + kv_head * head_bytes + dim * LANE_BYTES,
                    blocks,
                    block_stride,
                    head_dim * LANE_BYTES,
                    block_size,
                    context,
                    results + (vector * wide + dim) * 4,
                    4 * wide,
                )
                vector += some
        for vector in range(count):
            r, head = row + vector // group, kv_head * group + vector % group
            inverse = get_f32(scores + (vector + 1) * score_stride - 4)
            target = out + (r * heads + head) * 4 * head_dim
            for i in range(head_dim):
                set_f32(target + 4 * i, get_f32(results + (vector * wide + i) * 4) * inverse)
        row = last


@kernel
def _attention_bf16(args, item, worker):
    _attend(_scores_bf16, _mix_bf16, args, item, worker)


@kernel
def _attention_f32(args, item, worker):
    _attend(_scores_f32, _mix_f32, args, item, worker)


def attend(
    q: Tensor,
    cache: LayerCache,
    tables: Tensor,
    sequence_of: Tensor,
    positions: Tensor,
    scale: float,
) -> Tensor:
    """q [T, H, D] fp32 contiguous; tables [S, B], sequence_of [T], positions [T] all int32 contiguous."""
    num_rows, heads, head_dim = q.shape
    keys = cache.keys
    kv_heads, block_size, pairing = keys.shape[1], keys.shape[3], keys.shape[4]
    group = heads // kv_heads
    rows_each = max(1, ROWS // group)
    score_columns = tables.shape[1] * block_size + SCORE_PADDING
    wide = -(-head_dim // LANES) * LANES
    # a thread's own scratch: queries, results and scores of a piece
    scratch_floats = rows_each * group * (2 * wide + score_columns) + LANES
    scratch = torch.empty(num_threads() * scratch_floats)
    out = torch.empty((num_rows, heads * head_dim))
    launch(
        _attention_bf16 if pairing == 2 else _attention_f32,
        -(-num_rows // rows_each) * kv_heads,
        q.data_ptr(),
        out.data_ptr(),
        keys.data_ptr(),
        cache.values.data_ptr(),
        tables.data_ptr(),
        4 * tables.shape[1],
        sequence_of.data_ptr(),
        positions.data_ptr(),
        num_rows,
        heads,
        kv_heads,
        head_dim,
        block_size,
        keys.stride(0) * keys.element_size(),
        float_bits(scale),
        scratch.data_ptr(),
        4 * scratch_floats,
        4 * score_columns,
        rows_each,
        pairing,
    )
    return out
