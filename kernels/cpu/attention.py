"""Paged attention on raw bytes; knows no scheduler: decode and prefill rows are the same to it.

A piece of work is a few consecutive rows and one kv head: their query heads form tiles of at most six, as in the
dense product. Every score is a chain over the head's dimensions, every output a chain over tokens from position 0 up.
"""

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.compile import inline, kernel
from kernels.cpu.dense import panel_rows
from kernels.cpu.exponential import exp
from kernels.cpu.pool import float_bits, launch, num_threads, scratch
from kernels.cpu.simd import (
    LANES,
    add,
    f32_of_bits,
    get_f32,
    get_i32,
    lane_max,
    lane_sum,
    load_f32,
    maximum,
    mul,
    prefetch,
    set_f32,
    splat_f32,
    store_f32,
    sub,
)
from kernels.cpu.tile import LANE_BYTES, ROWS, paged_product
from kernels.kv_layout import LayerCache

ZERO, ONE = np.float32(0), np.float32(1)
CACHE_LINE = 64
LOWEST = np.float32(-np.inf)
# between the rows of scores: a multiple of 4096 bytes would put them all in the same cache set
SCORE_PADDING = 2 * LANES


@inline
def _score_blocks(zeros, queries, count, keys, values, table, geometry, context, alone, scores, stride) -> None:
    """scores[v, t] = queries[v] . key of token t, for every slot of the blocks that hold the context."""
    head_dim, block_size, block_stride, head_bytes, pairing = geometry
    step = block_size * LANE_BYTES
    for first in range(0, context, block_size):
        entry = table + 4 * (first // block_size)
        block = np.int64(get_i32(entry)) * block_stride
        # the values of this block are read after all scores, its next keys at once: both come from memory meanwhile
        if first + block_size < context and alone:
            following = np.int64(get_i32(entry + 4)) * block_stride
            for line in range(0, head_bytes, CACHE_LINE):
                prefetch(values + block + line)
                prefetch(keys + following + line)
        for panel in range(0, block_size, LANES):
            weight = keys + block + panel * LANE_BYTES
            out = scores + 4 * (first + panel)
            x_stride = 4 * head_dim
            panel_rows(count, pairing, queries, x_stride, weight, step, head_dim, zeros, out, stride)


@inline
def _softmax(scores, context, end, scale) -> float:
    """scores[:context] become e^(scale * (s - max)), the rest up to `end` 0; returns their sum."""
    whole = (context + LANES - 1) // LANES * LANES
    for i in range(context, whole):
        set_f32(scores + 4 * i, LOWEST)
    lanes = splat_f32(LOWEST)
    for i in range(0, whole, LANES):
        lanes = maximum(load_f32(scores + 4 * i), lanes)
    largest, total, factor = splat_f32(lane_max(lanes)), splat_f32(ZERO), splat_f32(scale)
    for i in range(0, whole, LANES):
        p = exp(mul(sub(load_f32(scores + 4 * i), largest), factor))
        store_f32(scores + 4 * i, p)
        total = add(total, p)
    for i in range(whole, end, LANES):
        store_f32(scores + 4 * i, splat_f32(ZERO))
    return lane_sum(total)


@inline
def _mix_values(p, p_stride, count, values, table, geometry, context, out, out_stride) -> None:
    """out[v] = sum over t of p[v, t] * value of token t"""
    head_dim, block_size, block_stride, _, pairing = geometry
    step = head_dim * LANE_BYTES
    for dim in range(0, head_dim, LANES):
        source = values + dim * LANE_BYTES
        tiles = (count + ROWS - 1) // ROWS
        vector = 0
        for tile in range(tiles):
            rows = (count - vector + tiles - tile - 1) // (tiles - tile)
            weights, target = p + vector * p_stride, out + vector * out_stride + 4 * dim
            paged_product(
                rows,
                pairing,
                weights,
                p_stride,
                source,
                table,
                block_stride,
                step,
                block_size,
                context,
                target,
                out_stride,
            )
            vector += rows


@kernel
def _attention_rows(args, item, worker) -> None:
    q, out, keys, values = args[0], args[1], args[2], args[3]
    tables, table_stride, sequence_of, positions = args[4], args[5], args[6], args[7]
    num_rows, heads, kv_heads, head_dim = args[8], args[9], args[10], args[11]
    block_size, block_stride, scale = args[12], args[13], f32_of_bits(args[14])
    scratch = args[15] + worker * args[16]
    score_stride, rows_each, pairing = args[17], args[18], args[19]
    head_bytes = head_dim * block_size * LANE_BYTES // pairing
    geometry = (head_dim, block_size, block_stride, head_bytes, pairing)
    group = heads // kv_heads
    kv_head, row = item % kv_heads, item // kv_heads * rows_each
    end = min(num_rows, row + rows_each)
    # room for a last vector that reads or writes past an odd head_dim
    wide = 4 * ((head_dim + LANES - 1) // LANES * LANES)
    zeros, queries = scratch, scratch + 4 * LANES
    store_f32(zeros, splat_f32(ZERO))
    results = queries + rows_each * group * wide
    scores = results + rows_each * group * wide
    head_keys, head_values = keys + kv_head * head_bytes, values + kv_head * head_bytes
    while row < end:
        sequence = get_i32(sequence_of + 4 * row)
        last = row
        longest = np.int32(0)
        while last < end and get_i32(sequence_of + 4 * last) == sequence:
            longest = max(longest, get_i32(positions + 4 * last) + np.int32(1))
            last += 1
        context, count = np.int64(longest), (last - row) * group
        table = tables + np.int64(sequence) * table_stride
        for r in range(row, last):
            source = q + (r * heads + kv_head * group) * 4 * head_dim
            target = queries + (r - row) * group * 4 * head_dim
            for i in range(0, group * head_dim):
                set_f32(target + 4 * i, get_f32(source + 4 * i))
        _score_blocks(
            zeros,
            queries,
            count,
            head_keys,
            head_values,
            table,
            geometry,
            context,
            last - row == 1,
            scores,
            score_stride,
        )
        for vector in range(count):
            own = np.int64(get_i32(positions + 4 * (row + vector // group))) + 1
            s = scores + vector * score_stride
            set_f32(s + score_stride - 4, ONE / _softmax(s, own, context, scale))
        _mix_values(scores, score_stride, count, head_values, table, geometry, context, results, wide)
        for vector in range(count):
            r, head = row + vector // group, kv_head * group + vector % group
            inverse = get_f32(scores + (vector + 1) * score_stride - 4)
            target = out + (r * heads + head) * 4 * head_dim
            for i in range(head_dim):
                set_f32(target + 4 * i, get_f32(results + vector * wide + 4 * i) * inverse)
        row = last


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
    # a thread's own: queries, results and scores of a piece
    scratch_bytes = 4 * (rows_each * group * (2 * wide + score_columns) + 2 * LANES)
    out = torch.empty((num_rows, heads * head_dim))
    launch(
        _attention_rows,
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
        scratch(num_threads() * scratch_bytes),
        scratch_bytes,
        4 * score_columns,
        rows_each,
        pairing,
    )
    return out
