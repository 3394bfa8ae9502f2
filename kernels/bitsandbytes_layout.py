"""bitsandbytes' 4- and 8-bit weights as transformers saves them, both directions; it knows no file and no product.

4 bits: `weight` [N K / 2, 1] uint8, two codes a byte, the first in the upper half; `weight.absmax`, `weight.quant_map`,
with double quantisation `weight.nested_absmax` and `weight.nested_quant_map`; the rest as JSON in bytes under
`weight.quant_state.bitsandbytes__nf4` (bitsandbytes.functional.QuantState.as_dict).
8 bits: `weight` [N, K] int8, `SCB` [N] fp32, the absmax of each row, `weight_format` 0, rows one after the other.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kernels.int8_matmul import Int8Weight
from kernels.nf4_matmul import ABSMAX_BLOCK, DoubleQuant, Nf4Weight
from kernels.packing import NF4_TABLE

NF4_STATE = "weight.quant_state.bitsandbytes__nf4"
FP4_STATE = "weight.quant_state.bitsandbytes__fp4"
INT8_LEVELS = 127.0
CODES = 256
"""Of 8 bits."""
ROW_MAJOR = 0
"""`weight_format` of rows one after the other; others belong to GPU layouts of old versions."""


def pack_bnb_nf4(weight: Nf4Weight, dtype: str = "bfloat16") -> dict[str, Tensor]:
    """By names after the matrix' own; `dtype` is what the weights were before."""
    codes = weight.qdata.reshape(-1, 2)
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": weight.block,
        "dtype": dtype,
        "shape": list(weight.qdata.shape),
    }
    tensors = {
        "weight": ((codes[:, 0] << 4) | codes[:, 1]).unsqueeze(1).contiguous(),
        "weight.quant_map": torch.tensor(NF4_TABLE),
    }
    absmax = weight.absmax
    if isinstance(absmax, DoubleQuant):
        tensors["weight.absmax"] = absmax.qdata
        tensors["weight.nested_absmax"] = absmax.scale
        tensors["weight.nested_quant_map"] = absmax.code
        state |= {
            "nested_blocksize": ABSMAX_BLOCK,
            "nested_dtype": "float32",
            "nested_offset": float(absmax.offset),
        }
    else:
        tensors["weight.absmax"] = absmax.flatten()
    tensors[NF4_STATE] = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
    return tensors


def unpack_bnb_nf4(tensors: Mapping[str, Tensor]) -> Nf4Weight:
    """What pack_bnb_nf4 was given, and what bitsandbytes made.

    KeyError for a missing tensor; ValueError for sizes that do not fit together, another table or another block of
    double quantisation.
    """
    state = json.loads(bytes(tensors[NF4_STATE].tolist()))
    rows, columns = state["shape"]
    block = state["blocksize"]
    packed = tensors["weight"].flatten()
    if block < 1 or columns % block:
        raise ValueError(f"blocks of {block} do not divide rows of {columns}")
    if packed.numel() * 2 != rows * columns:
        raise ValueError(f"{packed.numel()} bytes do not hold {rows} x {columns} codes of 4 bits")
    if not torch.allclose(tensors["weight.quant_map"].float().cpu(), torch.tensor(NF4_TABLE), atol=1e-6):
        raise ValueError("its quant_map is not that of NF4")
    codes = torch.stack([packed >> 4, packed & 15], dim=1).reshape(rows, columns)
    absmax = tensors["weight.absmax"]
    if absmax.numel() != rows * columns // block:
        raise ValueError(f"{absmax.numel()} values of absmax for {rows * columns // block} blocks")
    if "nested_blocksize" not in state:
        return Nf4Weight(qdata=codes, absmax=absmax.float().reshape(rows, -1), block=block)
    return Nf4Weight(qdata=codes, absmax=_nested(absmax, tensors, state), block=block)


def pack_bnb_int8(weight: Int8Weight) -> dict[str, Tensor]:
    """By names after the matrix' own."""
    return {
        "weight": weight.qdata,
        "SCB": weight.scale.float() * INT8_LEVELS,
        "weight_format": torch.tensor(ROW_MAJOR, dtype=torch.uint8),
    }


def unpack_bnb_int8(tensors: Mapping[str, Tensor]) -> Int8Weight:
    """What pack_bnb_int8 was given; KeyError for a missing tensor, ValueError for what does not fit together."""
    data, absmax = tensors["weight"], tensors["SCB"]
    if data.dtype != torch.int8 or absmax.shape != data.shape[:1]:
        raise ValueError(f"weight {data.dtype} {list(data.shape)} and SCB {list(absmax.shape)} do not belong together")
    if int(tensors.get("weight_format", torch.tensor(ROW_MAJOR))) != ROW_MAJOR:
        raise ValueError("its weight_format is not row-major")
    return Int8Weight(qdata=data, scale=absmax.float() / INT8_LEVELS)


def _nested(absmax: Tensor, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> DoubleQuant:
    if state["nested_blocksize"] != ABSMAX_BLOCK:
        raise ValueError(f"double quantisation in blocks of {state['nested_blocksize']}, not {ABSMAX_BLOCK}")
    blocks, code = tensors["weight.nested_absmax"].numel(), tensors["weight.nested_quant_map"].numel()
    if absmax.dtype != torch.uint8 or blocks * ABSMAX_BLOCK < absmax.numel() or code != CODES:
        raise ValueError(f"{blocks} nested_absmax and {code} nested_quant_map do not belong to {absmax.numel()} absmax")
    return DoubleQuant(
        qdata=absmax,
        code=tensors["weight.nested_quant_map"].float(),
        scale=tensors["weight.nested_absmax"].float(),
        offset=torch.tensor(state["nested_offset"], device=absmax.device),
    )
