"""out = (a @ w.T) * a_scale * w_scale in Triton, for 8-bit weights and for batches too small for a library's bf16
product; it knows neither who quantised nor which layer.

One kernel, by the types it meets: int8 x int8 (int32 sums), fp8 x fp8 and bf16 x bf16 (fp32 sums) on the matrix units,
or bf16 activations with the 8-bit weights widened in registers. It computes tiles of out.T: Hopper's wgmma takes at
least 64 rows of its first operand, which N always has and a decode batch does not; the batch is the second, 8 to 256
wide. Both come by the tensor memory accelerator, which fills with zeros past the end (pointers spill registers at
128 x 128), or by pointers where it cannot be used: rows that are no multiple of 16 bytes, cards before Hopper.

A program's first weights are on their way to the L2 before the kernel ahead has ended: no kernel writes weights.

Where there are fewer tiles than multiprocessors, K is split and a second kernel adds the fp32 partial sums in order:
no atomics, so that a result does not change from run to run.

Outliers (LLM.int8): a list of columns lies on the device, with its length. The kernel adds, for those columns, what the
8 bits of the activations lost, (x - q * a_scale) @ w[:, columns].T in bf16. No outlier, no cost; no host reads a count.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.gpu.launch import num_sms, pdl
from kernels.gpu.tuning import tuned_config


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmConfig:
    block_m: int
    """of the batch; at least 16"""
    block_n: int
    """of the weight's rows; 64 a warpgroup"""
    block_k: int
    splits: int
    num_warps: int
    num_stages: int
    early_steps: int = 4
    """of block_k, whose weights go to the L2 before the wait for the kernel ahead"""


class Outliers(NamedTuple):
    """What the quantisation of the rows left apart; `count` of the K `columns` are listed."""

    x: Tensor
    """[M, K] bf16, before quantisation"""
    columns: Tensor
    """[K] int32"""
    count: Tensor
    """[1] int32"""


def default_config(m: int, n: int, k: int, *, sms: int, weight_bytes: int = 1) -> GemmConfig:
    """Stages of 16 to 48 KB; K is split while a wave (one or two programs a multiprocessor) has room for it."""
    if weight_bytes == 2:
        # 64 rows of x are as many bytes as 64 of the weights: where there are tiles enough, half as many read x
        wide = m > 32 and n >= 128 * sms
        if m <= 16:
            block_m, block_n, block_k, num_warps, num_stages = 16, 64, 128, 4, 5
        elif m <= 32:
            block_m, block_n, block_k, num_warps, num_stages = 32, 64, 128, 4, 4
        elif m <= 64:
            block_m, block_n, block_k, num_warps, num_stages = (64, 128, 64, 4, 4) if wide else (64, 64, 128, 4, 3)
        else:
            block_m, block_n, block_k, num_warps, num_stages = 128, 128, 64, 8, 4
    elif m <= 16:
        block_m, block_n, block_k, num_warps, num_stages = 16, 64, 256, 4, 4
    elif m <= 32:
        block_m, block_n, block_k, num_warps, num_stages = 32, 64, 256, 4, 4
    elif m <= 64:
        block_m, block_n, block_k, num_warps, num_stages = 64, 64, 128, 4, 5
    elif m <= 128:
        block_m, block_n, block_k, num_warps, num_stages = 128, 64, 128, 4, 4
    else:  # 256 x 128 spills registers where there are outliers
        block_m, block_n, block_k, num_warps, num_stages = 128, 256, 128, 8, 4
    tiles, splits = triton.cdiv(m, block_m) * triton.cdiv(n, block_n), 1
    resident = sms * (2 if num_stages * (block_m + block_n) * block_k * weight_bytes <= 110_000 else 1)
    while 2 * tiles * splits <= resident and k >= 8 * block_k * splits:
        splits *= 2
    return GemmConfig(
        block_m=block_m,
        block_n=block_n,
        block_k=block_k,
        splits=splits,
        num_warps=num_warps,
        num_stages=num_stages,
    )


def scaled_gemm(
    a: Tensor,
    a_scale: Tensor | None,
    weight: Tensor,
    w_scale: Tensor | None,
    out: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    outliers: Outliers | None = None,
    config: GemmConfig | None = None,
) -> Tensor:
    """[M, K] @ [N, K].T -> [M, N], bf16 unless `out` is another type.

    a: int8 or e4m3 like the weight with `a_scale` [M] fp32, or bf16 with None. w_scale: [N] fp32, or None where the
    weight is bf16 as a is. bias: [N] fp32. Contiguous tensors. ValueError where the shapes do not fit.
    """
    (m, k), n = a.shape, weight.shape[0]
    if weight.shape[1] != k or not a.is_contiguous() or not weight.is_contiguous():
        raise ValueError(f"scaled_gemm: contiguous rows of {weight.shape[1]}, not {tuple(a.shape)}")
    if (a_scale is None) == (a.element_size() == 1) or (w_scale is None) == (weight.element_size() == 1):
        raise ValueError("scaled_gemm: 8-bit activations and weights have a scale, bf16 ones have none")
    if a.element_size() == 1 and a.dtype != weight.dtype:
        raise ValueError(f"scaled_gemm: {a.dtype} activations and {weight.dtype} weights")
    if out is None:
        out = torch.empty((m, n), dtype=torch.bfloat16, device=a.device)
    weight_bytes = weight.element_size()
    c = (
        config
        or tuned_config("scaled_gemm", GemmConfig, a, m=m, n=n, k=k, a_bytes=a.element_size(), w_bytes=weight_bytes)
        or default_config(m, n, k, sms=num_sms(a), weight_bytes=weight_bytes)
    )
    no_scale = a if bias is None else bias  # stands where a pointer is not used
    of_weight = no_scale if w_scale is None else w_scale
    with_pdl = pdl(a)
    split = c.splits > 1
    target = torch.empty((c.splits, m, n), dtype=torch.float32, device=a.device) if split else out
    tiles = triton.cdiv(m, c.block_m) * triton.cdiv(n, c.block_n)
    tma = k * min(weight_bytes, a.element_size()) % 16 == 0 and (with_pdl or not a.is_cuda)
    _scaled_gemm_kernel[(tiles, c.splits)](
        TensorDescriptor.from_tensor(a, [c.block_m, c.block_k]) if tma else a,
        TensorDescriptor.from_tensor(weight, [c.block_n, c.block_k]) if tma else weight,
        a,
        no_scale if a_scale is None else a_scale,
        weight,
        of_weight,
        of_weight if bias is None else bias,
        outliers.x if outliers else a,
        outliers.columns if outliers else a,
        outliers.count if outliers else a,
        target,
        m,
        n,
        K=k,
        BLOCK_M=c.block_m,
        BLOCK_N=c.block_n,
        BLOCK_K=c.block_k,
        SPLITS=c.splits,
        EARLY_STEPS=c.early_steps,
        A_SCALE=a_scale is not None,
        W_SCALE=w_scale is not None,
        BIAS=bias is not None,
        OUTLIERS=outliers is not None,
        TMA=tma,
        ON_GPU=a.is_cuda,
        PDL=with_pdl,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
        launch_pdl=with_pdl,
    )
    if split:
        _add_splits_kernel[(triton.cdiv(n, 1024), m)](
            target,
            of_weight,
            of_weight if bias is None else bias,
            out,
            m,
            n,
            SPLITS=c.splits,
            BLOCK=1024,
            W_SCALE=w_scale is not None,
            BIAS=bias is not None,
            PDL=with_pdl,
            num_warps=4,
            launch_pdl=with_pdl,
        )
    return out


def scaled_gemm_reference(
    a: Tensor,
    a_scale: Tensor | None,
    weight: Tensor,
    w_scale: Tensor | None,
    *,
    bias: Tensor | None = None,
    outliers: Outliers | None = None,
) -> Tensor:
    """The same in float64."""
    rows = a.double() if a_scale is None else a.double() * a_scale.double()[:, None]
    if outliers is not None:
        columns = outliers.columns[: int(outliers.count)].long()
        rows[:, columns] = outliers.x.double()[:, columns]
    product = rows @ (weight.double() if w_scale is None else weight.double() * w_scale.double()[:, None]).T
    return product if bias is None else product + bias.double()


@triton.jit
def _load_padded(pointers, mask):
    if pointers.dtype.scalar.element_ty == tl.float8e4nv:  # as bytes: the interpreter knows no fp8 zero
        values = tl.load(pointers.to(tl.pointer_type(tl.int8)), mask=mask, other=None if mask is None else 0)
        return values.to(tl.float8e4nv, bitcast=True)
    else:  # noqa: RET505 -- without it the compiler reads on where it has returned
        return tl.load(pointers, mask=mask, other=None if mask is None else 0)


@triton.jit
def _prefetch_to_l2(addresses, BYTES: tl.constexpr):
    """BYTES (a multiple of 16) at each address, which 16 divides, are requested; nothing waits for them."""
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [addresses.to(tl.int64), tl.full(addresses.shape, BYTES, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _dot(a, b, acc, ON_GPU: tl.constexpr):
    if ON_GPU or b.dtype != tl.bfloat16:
        return tl.dot(a.to(b.dtype), b, acc, out_dtype=acc.dtype)
    else:  # noqa: RET505 -- the interpreter multiplies a bf16's bits
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)


@triton.jit(do_not_specialize=["M"])
def _scaled_gemm_kernel(
    a_tiles,
    w_tiles,
    a,
    a_scale,
    weight,
    w_scale,
    bias,
    x,
    columns,
    count,
    out,
    M,
    N,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    EARLY_STEPS: tl.constexpr,
    A_SCALE: tl.constexpr,
    W_SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    OUTLIERS: tl.constexpr,
    TMA: tl.constexpr,
    ON_GPU: tl.constexpr,
    PDL: tl.constexpr,
):
    STEPS: tl.constexpr = (K + BLOCK_K * SPLITS - 1) // (BLOCK_K * SPLITS)
    EVEN: tl.constexpr = K % (BLOCK_K * SPLITS) == 0
    GROUP: tl.constexpr = 8
    OUTLIER_BLOCK: tl.constexpr = 32
    # eight tiles of N before the next of M: a wave reads few different tiles of either operand
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    group = tl.program_id(0) // (GROUP * tiles_m)
    in_group = tl.program_id(0) % (GROUP * tiles_m)
    width = tl.minimum(tiles_n - group * GROUP, GROUP)
    first_n = (group * GROUP + in_group % width) * BLOCK_N
    first_m = (in_group // width) * BLOCK_M
    split = tl.program_id(1)

    # rows past the end repeat the last one: no masks on their loads. Offsets inside a tile fit 32 bits.
    in_n = tl.arange(0, BLOCK_N)
    in_m = tl.arange(0, BLOCK_M)
    n = tl.minimum(in_n, N - 1 - first_n)
    m = tl.minimum(in_m, M - 1 - first_m)
    w_rows = weight + first_n.to(tl.int64) * K
    a_rows = a + first_m.to(tl.int64) * K
    first_k = split * (STEPS * BLOCK_K)
    k = first_k + tl.arange(0, BLOCK_K)
    if PDL:
        EARLY: tl.constexpr = min(EARLY_STEPS, STEPS) * BLOCK_K
        if TMA and EVEN and EARLY > 0:  # two pieces of each row, so that every thread asks for one
            piece = tl.arange(0, 2 * BLOCK_N)
            row = tl.minimum(piece // 2, N - 1 - first_n)
            early = w_rows + row * K + first_k + piece % 2 * (EARLY // 2)
            _prefetch_to_l2(early, EARLY // 2 * weight.dtype.element_ty.primitive_bitwidth // 8)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    SUMS: tl.constexpr = tl.int32 if a.dtype.element_ty == tl.int8 else tl.float32
    acc = tl.zeros((BLOCK_N, BLOCK_M), SUMS)
    for step in range(STEPS):
        if TMA:
            w = w_tiles.load([first_n, first_k + step * BLOCK_K])
            rows = a_tiles.load([first_m, first_k + step * BLOCK_K]).T
        else:
            at = k + step * BLOCK_K
            w = _load_padded(w_rows + n[:, None] * K + at[None, :], None if EVEN else at[None, :] < K)
            rows = _load_padded(a_rows + m[None, :] * K + at[:, None], None if EVEN else at[:, None] < K)
        acc = _dot(w, rows, acc, ON_GPU)

    value = acc.to(tl.float32)
    if A_SCALE:
        value *= tl.load(a_scale + first_m + m)[None, :]
    if OUTLIERS:
        x_rows = x + first_m.to(tl.int64) * K
        listed = tl.load(count)
        if SPLITS > 1:
            listed = tl.where(split == 0, listed, 0)
        start = 0
        while start < listed:
            at = start + tl.arange(0, OUTLIER_BLOCK)
            valid = at < listed
            column = tl.load(columns + at, mask=valid, other=0)
            of_rows = m[None, :] * K + column[:, None]
            lost = tl.load(x_rows + of_rows, mask=valid[:, None], other=0.0).to(tl.float32)
            kept = tl.load(a_rows + of_rows, mask=valid[:, None], other=0).to(tl.float32)
            lost -= kept * tl.load(a_scale + first_m + m)[None, :]
            w_columns = tl.load(w_rows + n[:, None] * K + column[None, :], mask=valid[None, :], other=0)
            # an int8 is a bf16 without rounding
            value = _dot(w_columns, lost.to(tl.bfloat16), value, ON_GPU)
            start += OUTLIER_BLOCK

    to = out + first_m.to(tl.int64) * N + first_n
    if SPLITS > 1:
        to += split.to(tl.int64) * M * N
    else:
        if W_SCALE:
            value *= tl.load(w_scale + first_n + n)[:, None]
        if BIAS:
            value += tl.load(bias + first_n + n)[:, None]
    inside = (in_m < M - first_m)[:, None] & (in_n < N - first_n)[None, :]
    tl.store(to + (in_m[:, None] * N + in_n[None, :]), value.T.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M"])
def _add_splits_kernel(
    partial,
    w_scale,
    bias,
    out,
    M,
    N,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    W_SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    if W_SCALE:
        scale = tl.load(w_scale + n, mask=inside, other=0.0)
    if BIAS:
        addend = tl.load(bias + n, mask=inside, other=0.0)
    at = tl.program_id(1).to(tl.int64) * N + n
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial + split * tl.cast(M, tl.int64) * N + at, mask=inside, other=0.0)
    if W_SCALE:
        total *= scale
    if BIAS:
        total += addend
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
