"""Several rows times 4-bit weights on Hopper's tensor cores, in Gluon, weights decoded into registers.

out^T [BN, BM] = W [BN, 128] x^T [128, BM] a step: words and activations come by cp.async, STAGES steps ahead; a lane
reads its 16 bytes of a row, decodes them to the 32 bf16 that wgmma wants of it as the A operand (the layout of
four_bit_layout), while the product of the step before runs. BM is the whole batch up to 256: a word is decoded once.
SPLIT programs share K; the last to arrive adds the fp32 parts. It runs on compute capability 9.0 only.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from kernels.gpu.four_bit_decode import (
    BF16_INT4,
    BF16_INT4_ZEROS,
    BF16_NF4,
    HALVES_CONSTRAINTS,
    HALVES_NF4_CONSTRAINTS,
    HALVES_ZEROS_CONSTRAINTS,
)


@gluon.constexpr_function
def _lanes(rows, num_warps):
    """What a lane holds of [rows, 16] words: u in registers, t in two bits of the lane, rows as in the operand."""
    warp_bases = [[16 << i, 0] for i in range(num_warps.bit_length() - 1)]
    more_rows = [[16 * num_warps << i, 0] for i in range((rows // (16 * num_warps)).bit_length() - 1)]
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [0, 2], [8, 0], *more_rows],
        lane_bases=[[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]],
        warp_bases=warp_bases,
        block_bases=[],
        shape=[rows, 16],
    )


@gluon.jit
def _decode(
    words, scale, offset, table, NF4: gl.constexpr, ZEROS: gl.constexpr, BN: gl.constexpr, operand: gl.constexpr
):
    """[BN, 16] words, scale and 128 + zero as bf16 twice in an int32 -> [BN, 128] bf16, without moving a register."""
    types: gl.constexpr = (gl.bfloat16,) * 8
    if NF4:
        v = gl.inline_asm_elementwise(
            BF16_NF4, HALVES_NF4_CONSTRAINTS,
            [words, scale, table[0], table[1], table[2], table[3], table[4], table[5], table[6], table[7]],
            dtype=types, is_pure=True, pack=1,
        )  # fmt: skip
    elif ZEROS:
        v = gl.inline_asm_elementwise(
            BF16_INT4_ZEROS, HALVES_ZEROS_CONSTRAINTS, [words, scale, offset], dtype=types, is_pure=True, pack=1
        )
    else:
        v = gl.inline_asm_elementwise(BF16_INT4, HALVES_CONSTRAINTS, [words, scale], dtype=types, is_pure=True, pack=1)
    p0 = gl.join(v[0], v[1])
    p1 = gl.join(v[2], v[3])
    p2 = gl.join(v[4], v[5])
    p3 = gl.join(v[6], v[7])
    # [BN, 16, e, p % 2, p / 2] -> [BN, t, u, e, p % 2, p / 2] -> [BN, u, p / 2, p % 2, t, e]
    values = gl.join(gl.join(p0, p1), gl.join(p2, p3)).reshape([BN, 4, 4, 2, 2, 2])
    values = values.permute((0, 2, 5, 4, 1, 3)).reshape([BN, 128])
    return gl.convert_layout(values, operand, assert_trivial=True)


@gluon.jit
def _twice(values):
    """bf16 in both halves of an int32."""
    bits = values.to(gl.bfloat16).to(gl.int16, bitcast=True).to(gl.int32) & 0xFFFF
    return bits | (bits << 16)


@gluon.jit
def _scales_at(scales, zeros, rows, u, block, groups, group_blocks, ZEROS: gl.constexpr, GROUP: gl.constexpr):
    """Scales and zeros of a block, [BN, 1] or, where it has several groups, [BN, 16]."""
    if GROUP == 128:
        at = gl.expand_dims(rows * groups + block // group_blocks, 1)
    else:
        at = (rows * groups)[:, None] + (block * (128 // GROUP) + u * 32 // GROUP)[None, :]
    scale = gl.load(scales + at)
    zero = scale
    if ZEROS:
        zero = gl.load(zeros + at)
    return scale, zero


@gluon.jit
def gemm_hopper(
    x, words, scales, zeros, registers, bias, out, parts, arrivals,
    M, N, K, blocks, groups, group_blocks,
    NF4: gl.constexpr, ZEROS: gl.constexpr, GROUP: gl.constexpr,
    BN: gl.constexpr, BM: gl.constexpr, STAGES: gl.constexpr, SPLIT: gl.constexpr, BIAS: gl.constexpr,
    PDL: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    mma: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[num_warps, 1], instr_shape=[16, BM, 16]
    )
    operand: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=mma, k_width=2)
    lanes: gl.constexpr = _lanes(BN, num_warps)
    word_copy: gl.constexpr = gl.BlockedLayout([1, 4], [8, 4], [num_warps, 1], [1, 0])
    x_copy: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [num_warps, 1], [1, 0])
    word_shared: gl.constexpr = gl.SwizzledSharedLayout(vec=4, per_phase=1, max_phase=1, order=[1, 0])
    x_shared: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    word_buffers = gl.allocate_shared_memory(gl.int32, [STAGES, BN, 16], word_shared)
    x_buffers = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BM, 128], x_shared)

    n_tile = gl.program_id(0)
    part = gl.program_id(1)
    m_tile = gl.program_id(2)
    per_part = (blocks + SPLIT - 1) // SPLIT
    first = part * per_part
    steps = gl.minimum(per_part, blocks - first)

    word_rows = n_tile * BN + gl.arange(0, BN, gl.SliceLayout(1, word_copy))
    word_cols = gl.arange(0, 16, gl.SliceLayout(0, word_copy))
    word_at = words + word_rows.to(gl.int64)[:, None] * (blocks * 16) + (first * 16 + word_cols)[None, :]
    x_rows = m_tile * BM + gl.arange(0, BM, gl.SliceLayout(1, x_copy))
    x_cols = first * 128 + gl.arange(0, 128, gl.SliceLayout(0, x_copy))
    x_at = x + x_rows.to(gl.int64)[:, None] * K + x_cols[None, :]

    rows = n_tile * BN + gl.arange(0, BN, gl.SliceLayout(1, lanes))
    u = gl.arange(0, 16, gl.SliceLayout(0, lanes)) % 4

    table = (0,)
    if NF4:
        at = registers + 8 * 32
        low = (gl.load(at), gl.load(at + 32), gl.load(at + 64), gl.load(at + 96))
        table = low + (gl.load(at + 128), gl.load(at + 160), gl.load(at + 192), gl.load(at + 224))
    # weights are nobody's output: their first copies are asked for before the kernel before has ended
    for s in gl.static_range(STAGES - 2):
        async_copy.async_copy_global_to_shared(
            word_buffers.index(s), word_at + s * 16, mask=(s < steps) & (word_cols >= 0)[None, :]
        )
    if PDL:
        gl.inline_asm_elementwise(
            "griddepcontrol.wait; griddepcontrol.launch_dependents; mov.u32 $0, 0;",
            "=r",
            [],
            dtype=gl.int32,
            is_pure=False,
            pack=1,
        )
    for s in gl.static_range(STAGES - 2):
        async_copy.async_copy_global_to_shared(
            x_buffers.index(s),
            x_at + s * 128,
            mask=(x_rows < M)[:, None] & (x_cols + s * 128 < K)[None, :] & (s < steps),
        )
        async_copy.commit_group()

    raw_scale, raw_zero = _scales_at(scales, zeros, rows, u, first, groups, group_blocks, ZEROS, GROUP)
    running = warpgroup_mma_init(gl.zeros([BN, BM], gl.float32, mma))
    # Two steps a turn, for a product in flight reads its weights from registers: those of step i are written again at
    # i + 2, after the wait for i. In a plain loop the registers of i and i + 1 are the same, and step i + 1 decodes
    # into them under the product of i. The step past an odd end multiplies activations that the copies filled with 0.
    for turn in range((steps + 1) // 2):
        for half in gl.static_range(2):
            i = 2 * turn + half
            async_copy.wait_group(STAGES - 3)
            fence_async_shared()
            ahead = i + STAGES - 2
            async_copy.async_copy_global_to_shared(
                word_buffers.index(ahead % STAGES),
                word_at + ahead * 16,
                mask=(ahead < steps) & (word_cols >= 0)[None, :],
            )
            async_copy.async_copy_global_to_shared(
                x_buffers.index(ahead % STAGES),
                x_at + ahead * 128,
                mask=(x_rows < M)[:, None] & (x_cols + ahead * 128 < K)[None, :] & (ahead < steps),
            )
            async_copy.commit_group()

            scale = _twice(raw_scale)
            offset = gl.full([1, 1], 0, gl.int32, lanes)
            if ZEROS:
                offset = 0x43084308 + raw_zero.to(gl.int32) * 0x00010001
            # a step ahead, for their latency is longer than a step
            raw_scale, raw_zero = _scales_at(
                scales, zeros, rows, u, gl.minimum(first + i + 1, blocks - 1), groups, group_blocks, ZEROS, GROUP
            )
            tile = word_buffers.index(i % STAGES).load(lanes)
            weights = _decode(tile, scale, offset, table, NF4, ZEROS, BN, operand)
            done = warpgroup_mma_wait(num_outstanding=0, deps=(running,))
            running = warpgroup_mma(weights, x_buffers.index(i % STAGES).permute((1, 0)), done, is_async=True)
    acc = warpgroup_mma_wait(num_outstanding=0, deps=(running,))
    async_copy.wait_group(0)
    gl.thread_barrier()  # the buffers become the scratch of what follows, and another warpgroup may still read them

    n = n_tile * BN + gl.arange(0, BN, gl.SliceLayout(1, mma))
    m = m_tile * BM + gl.arange(0, BM, gl.SliceLayout(0, mma))
    ok = (n < N)[:, None] & (m < M)[None, :]
    at = m.to(gl.int64)[None, :] * N + n[:, None]
    last = True
    if SPLIT > 1:
        gl.store(parts + part.to(gl.int64) * M * N + at, acc, mask=ok)
        gl.thread_barrier()
        counter = arrivals + n_tile + m_tile * gl.num_programs(0)
        last = gl.atomic_add(counter, 1, sem="acq_rel") == SPLIT - 1
        if last:
            gl.thread_barrier()
            acc = gl.zeros([BN, BM], gl.float32, mma)
            for s in gl.static_range(SPLIT):
                acc += gl.load(parts + s * (M * N).to(gl.int64) + at, mask=ok, other=0.0, cache_modifier=".cg")
            gl.store(counter, 0)
    if last:
        if BIAS:
            acc += gl.load(bias + n, mask=n < N, other=0.0)[:, None]
        # neighbours in n of a row of out lie in eight lanes; through shared memory they leave as 16 bytes
        wide: gl.constexpr = gl.BlockedLayout([8, 1], [8, 4], [1, num_warps], [0, 1])
        values = gl.convert_layout(acc.to(gl.bfloat16), wide)
        n_wide = n_tile * BN + gl.arange(0, BN, gl.SliceLayout(1, wide))
        m_wide = m_tile * BM + gl.arange(0, BM, gl.SliceLayout(0, wide))
        gl.store(
            out + m_wide.to(gl.int64)[None, :] * N + n_wide[:, None],
            values,
            mask=(n_wide < N)[:, None] & (m_wide < M)[None, :],
        )
