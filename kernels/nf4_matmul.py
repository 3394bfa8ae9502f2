"""x @ weight.T with 4-bit NormalFloat weights (QLoRA, Dettmers et al. 2023); does not know which layer it is.

weight = table[code] * absmax of its block of 64 along K. Codes and absmax equal those of bitsandbytes. With double
quantisation absmax itself is an 8-bit code in the checkpoint; pack_nf4 makes it fp32 again (0.4 bits a weight more).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels import packing

ABSMAX_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubleQuant:
    """absmax = code[qdata] * scale[block of 256] + offset"""

    qdata: Tensor
    """[N * K / block] uint8"""
    code: Tensor
    """[256] fp32"""
    scale: Tensor
    offset: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Nf4Weight:
    qdata: Tensor
    """[N, K] uint8 codes 0 .. 15, one a byte"""
    absmax: Tensor | DoubleQuant
    """[N, K / block] fp32, or its own quantisation"""
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedNf4:
    codes: Tensor
    """[panels, K/4, 32] uint8"""
    scales: Tensor
    """[panels, K/block, LANES] fp32"""
    block: int
    out_features: int
    in_features: int

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


def quantize_nf4(weight: Tensor, block: int = 64, double_quant: bool = False) -> Nf4Weight:
    n, k = weight.shape
    if k % block or block % 8:
        raise ValueError(f"nf4 blocks of {block} do not divide rows of {k}")
    table = torch.tensor(packing.NF4_TABLE, device=weight.device)
    codes, absmax = _nearest(weight.float().reshape(-1, block), table)
    scale = _quantize_absmax(absmax) if double_quant else absmax.reshape(n, k // block)
    return Nf4Weight(qdata=codes.reshape(n, k), absmax=scale, block=block)


def dequantize_nf4(weight: Nf4Weight) -> Tensor:
    table = torch.tensor(packing.NF4_TABLE, device=weight.qdata.device)
    blocks = table[weight.qdata.long()].unflatten(1, (-1, weight.block))
    return (blocks * block_absmax(weight).unsqueeze(-1)).flatten(1)


def block_absmax(weight: Nf4Weight) -> Tensor:
    """[N, K / block] fp32, double quantisation undone."""
    absmax = weight.absmax
    if isinstance(absmax, DoubleQuant):
        scale = absmax.scale.repeat_interleave(ABSMAX_BLOCK)[: absmax.qdata.numel()]
        absmax = absmax.code[absmax.qdata.long()] * scale + absmax.offset
    return absmax.reshape(weight.qdata.shape[0], -1)


def _nearest(blocks: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest entry of a sorted table for each value over its row's absmax, and the absmax."""
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / absmax.clamp(min=1e-38))[:, None]).clamp(-1, 1)
    return torch.bucketize(scaled, (table[1:] + table[:-1]) / 2).to(torch.uint8), absmax


def _quantize_absmax(absmax: Tensor) -> DoubleQuant:
    offset = absmax.mean()
    code = dynamic_code(absmax.device)
    blocks = packing.pad_to(absmax - offset, 0, ABSMAX_BLOCK).view(-1, ABSMAX_BLOCK)
    qdata, scale = _nearest(blocks, code)
    return DoubleQuant(qdata=qdata.flatten()[: absmax.numel()], code=code, scale=scale, offset=offset)


def dynamic_code(device: torch.device) -> Tensor:
    """bitsandbytes' signed 8-bit dynamic code: 2^i fractions between 0.1 and 1 at each of seven powers of ten."""
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        means = (10.0 ** (i - 6)) * (edges[:-1] + edges[1:]) / 2
        values += [*means.tolist(), *(-means).tolist()]
    return torch.tensor(sorted(values), device=device)


def pack_nf4(weight: Nf4Weight) -> PackedNf4:
    out_features, in_features = weight.qdata.shape
    codes = packing.pack_nibbles(weight.qdata)
    scales = packing.panels_of(block_absmax(weight), 1).squeeze(-1)
    return PackedNf4(
        codes=codes,
        scales=scales,
        block=weight.block,
        out_features=out_features,
        in_features=in_features,
    )


def unpack_nf4(packed: PackedNf4) -> Nf4Weight:
    shape = packed.out_features, packed.in_features
    qdata = packing.unpack_nibbles(packed.codes, *shape)
    absmax = packing.rows_of(packed.scales.unsqueeze(-1), shape[0], shape[1] // packed.block)
    return Nf4Weight(qdata=qdata, absmax=absmax, block=packed.block)


def nf4_matmul(x: Tensor, weight: PackedNf4, bias: Tensor | None = None) -> Tensor:
    """[M, K] fp32 -> [M, N] fp32; a row's result does not depend on the other rows."""
    if not x.is_cpu:
        return nf4_matmul_reference(x, weight, bias)
    return _cpu().matmul(x, weight.codes, weight.scales, weight.block, weight.out_features, bias)


def nf4_matmul_reference(x: Tensor, weight: PackedNf4, bias: Tensor | None = None) -> Tensor:
    out = x.float() @ dequantize_nf4(unpack_nf4(weight)).T
    return out if bias is None else out + bias.float()


@cache
def _cpu() -> Any:
    from kernels.cpu import nf4

    return nf4
