"""Fresh random 4-bit weights and activations for the tests of both codes."""

import torch
from torch import Tensor

from kernels.checkpoint_layouts import IntegerWeight
from kernels.gpu.int4 import PackedInt4, dequantize_int4_reference, pack_int4
from kernels.gpu.nf4 import PackedNf4Words, dequantize_nf4_reference, pack_nf4_words
from kernels.nf4_matmul import quantize_nf4


def random_int4(n: int, k: int, group: int, device: str, *, zeros: bool, order: bool = False) -> PackedInt4:
    groups = k // group
    group_of = torch.arange(k, device=device) // group
    weight = IntegerWeight(
        codes=torch.randint(0, 16, (n, k), dtype=torch.uint8, device=device),
        scales=(torch.rand(n, groups, device=device) * 0.02 + 0.002).to(torch.float16),
        zeros=torch.randint(0 if zeros else 8, 17 if zeros else 9, (n, groups), dtype=torch.uint8, device=device),
        group_of=(group_of[torch.randperm(k, device=device)] if order else group_of).to(torch.int32),
        bits=4,
    )
    return pack_int4(weight)


def random_nf4(n: int, k: int, block: int, device: str) -> PackedNf4Words:
    return pack_nf4_words(quantize_nf4(torch.randn(n, k, device=device) * 0.05, block=block))


def dense(packed: PackedInt4 | PackedNf4Words) -> Tensor:
    return dequantize_int4_reference(packed) if isinstance(packed, PackedInt4) else dequantize_nf4_reference(packed)


def activations(m: int, k: int, device: str) -> Tensor:
    return (torch.randn(m, k, device=device) * 1.7 + 0.1).to(torch.bfloat16)


def poisoned(m: int, n: int, device: str) -> Tensor:
    return torch.full((m, n), float("nan"), dtype=torch.bfloat16, device=device)
