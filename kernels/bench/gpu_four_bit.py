"""Cases of 4-bit weights at Llama-3.1-8B's shapes: one row, several rows, dequantised; peer cuBLAS in bf16."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from kernels.bench.case import Call, Case
from kernels.gpu.four_bit_decode import nf4_registers
from kernels.gpu.four_bit_dequantize import dequantize
from kernels.gpu.four_bit_gemm import GemmConfig, four_bit_gemm
from kernels.gpu.four_bit_gemv import GemvConfig, four_bit_gemv
from kernels.gpu.four_bit_layout import PackedFourBit
from kernels.gpu.int4 import PackedInt4
from kernels.gpu.nf4 import PackedNf4Words

SHAPES = {
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
    "square": (8192, 8192),
}
_OUTGROW_L2 = 128 << 20
_Copy = TypeVar("_Copy")

# rows, quads, warps; 32 * quads of K a tile
_GEMV = {4096: [(8, 128, 4), (8, 64, 2)], 8192: [(8, 64, 2)], 14336: [(8, 64, 2), (4, 64, 2), (2, 64, 2)]}
_NF4_GEMV = {4096: [(8, 128, 4), (4, 128, 4)], 8192: [(8, 128, 4)], 14336: [(4, 64, 2), (2, 64, 2)]}
# shape, rows of x -> Hopper's tiles other than the default: n, m, split, warps, stages
_GEMM = {
    ("o", 64): [(64, 64, 2, 4, 4), (64, 64, 1, 4, 4)],
    ("o", 128): [(128, 128, 2, 8, 4), (64, 128, 2, 4, 3)],
    ("o", 256): [(128, 128, 1, 8, 4), (128, 256, 2, 8, 3)],
    ("down", 128): [(128, 128, 2, 8, 4)],
    ("down", 256): [(128, 256, 4, 8, 3), (128, 128, 4, 8, 4)],
    ("gate_up", 64): [(128, 64, 1, 8, 5)],
    ("gate_up", 128): [(64, 128, 1, 4, 3)],
    ("gate_up", 256): [(128, 128, 1, 8, 4)],
}


def random_packed(n: int, k: int, *, nf4: bool) -> PackedFourBit:
    """Random words in groups of 128 (int4) or 64 (nf4), without packing them."""
    group, device = 64 if nf4 else 128, "cuda"
    words = torch.randint(-(1 << 31), (1 << 31) - 1, (n, k // 8), dtype=torch.int32, device=device)
    scales = (torch.rand(n, k // group, device=device) * 0.01 + 0.002).to(torch.float16)
    of = PackedNf4Words if nf4 else PackedInt4
    return of(
        words=words,
        scales=scales,
        zeros=None,
        group_size=group,
        out_features=n,
        in_features=k,
        input_order=None,
        table=nf4_registers(words.device) if nf4 else None,
        arrivals=words.new_zeros(n // 32),
    )


def cases() -> Iterator[Case]:
    for name, (n, k) in SHAPES.items():
        dense = _copies(lambda n=n, k=k: torch.randn(n, k, device="cuda", dtype=torch.bfloat16), 2 * n * k)
        for nf4 in (False, True):
            code = "nf4" if nf4 else "int4"
            weights = _copies(lambda n=n, k=k, nf4=nf4: random_packed(n, k, nf4=nf4), n * k // 2)
            yield from _one_row(name, code, weights, dense)
            for m in _rows_of_x(name, nf4):
                yield from _several_rows(name, code, m, weights, dense)
            if name == "gate_up":
                out = torch.empty(n, k, device="cuda", dtype=torch.bfloat16)
                yield Case(
                    operation=f"{code} dequantise",
                    shape=f"{name} {n}x{k}",
                    calls=[partial(dequantize, w, out) for w in weights],
                    bytes=weights[0].nbytes + out.nbytes,
                )
            del weights
        del dense


def _rows_of_x(name: str, nf4: bool) -> tuple[int, ...]:
    if name == "square":
        return (16,)
    if nf4:
        return (16, 128) if name in ("gate_up", "o") else ()
    return (2, 16, 32, 64, 128, 256)


def _copies(make: Callable[[], _Copy], nbytes: int) -> list[_Copy]:
    return [make() for _ in range(max(2, -(-_OUTGROW_L2 // nbytes)))]


def _one_row(name: str, code: str, weights: list[PackedFourBit], dense: list[Tensor]) -> Iterator[Case]:
    n, k = SHAPES[name]
    x, out = torch.randn(1, k, device="cuda", dtype=torch.bfloat16), dense[0].new_empty(1, n)
    half = dense[0].new_empty(1, n // 2)
    peer: list[Call] = [partial(functional.linear, x, w) for w in dense]
    configs = (_NF4_GEMV if code == "nf4" else _GEMV)[k]
    case = partial(Case, shape=f"{name} 1x{n}x{k}", bytes=weights[0].nbytes + x.nbytes + out.nbytes, flops=2 * n * k)
    for rows, quads, warps in configs:
        config = GemvConfig(rows=rows, quads=quads, warps=warps)
        yield case(
            operation=f"{code} gemv r{rows} q{quads} w{warps}",
            calls=[partial(four_bit_gemv, x, w, out, config=config) for w in weights],
            peer="cuBLAS bf16",
            peer_calls=peer,
        )
    if name == "gate_up":
        for rows, quads, warps in [(4, 128, 4), (8, 128, 4), (4, 64, 2)]:
            config = GemvConfig(rows=rows, quads=quads, warps=warps)
            yield case(
                operation=f"{code} gemv, gated, r{rows} q{quads} w{warps}",
                calls=[partial(four_bit_gemv, x, w, half, gated=True, config=config) for w in weights],
            )


def _several_rows(name: str, code: str, m: int, weights: list[PackedFourBit], dense: list[Tensor]) -> Iterator[Case]:
    n, k = SHAPES[name]
    x, out = torch.randn(m, k, device="cuda", dtype=torch.bfloat16), dense[0].new_empty(m, n)
    peer: list[Call] = [partial(functional.linear, x, w) for w in dense]
    for tile in [None, *(_GEMM.get((name, m), []) if code == "int4" else [])]:
        config = (
            None if tile is None else GemmConfig(**dict(zip(("n", "m", "split", "warps", "stages"), tile, strict=True)))
        )
        label = "" if tile is None else " n{} m{} split{} w{} s{}".format(*tile)
        yield Case(
            operation=f"{code} gemm{label}",
            shape=f"{name} {m}x{n}x{k}",
            calls=[partial(four_bit_gemm, x, w, out, config=config) for w in weights],
            bytes=weights[0].nbytes + x.nbytes + out.nbytes,
            flops=2 * m * n * k,
            peer="cuBLAS bf16",
            peer_calls=peer,
        )
