"""A checkpoint's matrices as the numbers they stand for, whatever tool wrote it; it packs nothing for a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from cluster.errors import UserError
from cluster.model_shape import read_config
from cluster.quantization import Quantization, quantization_of
from cluster.variants import Method
from engine.weights import FLOATS, CheckpointTensors
from kernels.bitsandbytes_layout import FP4_STATE, NF4_STATE, unpack_bnb_int8, unpack_bnb_nf4
from kernels.checkpoint_layouts import IntegerWeight, unpack_awq, unpack_gptq
from kernels.int8_matmul import Int8Weight
from kernels.nf4_matmul import Nf4Weight, block_absmax

BNB_4BIT = ("weight", "weight.absmax", "weight.quant_map", NF4_STATE)
BNB_NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
NIBBLES = 8
"""In a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Weight:
    """weight = data * scale"""

    data: Tensor
    """[N, K] float8_e4m3fn"""
    scale: Tensor
    """[N] fp32"""


StoredMatrix = IntegerWeight | Nf4Weight | Int8Weight | Fp8Weight | Tensor
"""A dense one is [N, K] in the dtype it is stored in."""
Found = TypeVar("Found")


class QuantizedCheckpoint:
    """One folder's matrices on one device; UserError names the folder, the tensor and what is wrong with it."""

    def __init__(self, tensors: CheckpointTensors, method: Method, device: str) -> None:
        """`method` is the variant's: gptq and awq are read, the others are made from floats where they are not read."""
        self._tensors, self._device = tensors, device
        self._where = str(tensors.folder / "config.json")
        found = self._quantization = quantization_of(read_config(tensors.folder), self._where)
        if (found is None and method in ("gptq", "awq")) or (found is not None and found.method != method):
            kind = "not quantised" if found is None else f"quantised by {found.method}"
            raise UserError(f"{self._where}: its model is {kind}, and the variant's method is {method}")

    def matrix(self, name: str, rows: int, columns: int) -> StoredMatrix:
        """`name` without .weight. A matrix that the tool left as it was is dense."""
        found = self._quantization
        if found is None or self._is_dense(name, found):
            return self.dense(f"{name}.weight", rows, columns)
        match found.method:
            case "gptq" | "awq":
                return self._integers(name, rows, columns, found)
            case "nf4":
                return self._nf4(name, rows, columns)
            case "int8":
                return self._int8(name, rows, columns)
            case "fp8":
                return self._fp8(name, rows, columns)

    def dense(self, name: str, *shape: int) -> Tensor:
        """Floats of exactly that shape; `name` is the tensor's own."""
        return self._tensors.read(name, *shape).to(self._device)

    def _is_dense(self, name: str, found: Quantization) -> bool:
        if f"{name}.weight" not in self._tensors:
            return False
        if found.method in ("gptq", "awq"):
            return f"{name}.qweight" not in self._tensors
        return self._tensors.dtype(f"{name}.weight") in FLOATS

    def _integers(self, name: str, rows: int, columns: int, found: Quantization) -> IntegerWeight:
        groups = self._num_groups(name, columns, found)
        scales = self._finite(f"{name}.scales", groups, rows)
        if found.method == "awq":
            qweight = self._stored(f"{name}.qweight", (torch.int32,), columns, rows // NIBBLES)
            qzeros = self._stored(f"{name}.qzeros", (torch.int32,), groups, rows // NIBBLES)
            return self._unpacked(name, lambda: unpack_awq(qweight, qzeros, scales))
        bits = found.bits
        qweight = self._stored(f"{name}.qweight", (torch.int32,), columns * bits // 32, rows)
        qzeros = self._stored(f"{name}.qzeros", (torch.int32,), groups, rows * bits // 32)
        g_idx = self._g_idx(name, columns, groups, found)
        v1 = found.zeros_less_one
        return self._unpacked(name, lambda: unpack_gptq(qweight, qzeros, scales, g_idx, bits=bits, v1=v1))

    def _num_groups(self, name: str, columns: int, found: Quantization) -> int:
        size = found.group_size or columns
        if columns % size:
            raise UserError(
                f"{self._where}: quantization_config.group_size {size} does not divide the"
                f" {columns} columns of {name}; the checkpoint is of another model, or was made with another group_size"
            )
        return columns // size

    def _g_idx(self, name: str, columns: int, groups: int, found: Quantization) -> Tensor | None:
        if f"{name}.g_idx" not in self._tensors:
            if found.act_order:
                raise self._wrong(f"{name}.g_idx", "is missing, and desc_act says that groups are no neighbours")
            return None
        g_idx = self._stored(f"{name}.g_idx", (torch.int32, torch.int64), columns)
        if int(g_idx.min()) < 0 or int(g_idx.max()) >= groups:
            raise self._wrong(f"{name}.g_idx", f"names groups up to {int(g_idx.max())}, there are {groups}")
        counts = torch.bincount(g_idx.long(), minlength=groups)
        if bool((counts != columns // groups).any()):
            raise self._wrong(f"{name}.g_idx", f"does not give each of {groups} groups {columns // groups} columns")
        return g_idx

    def _nf4(self, name: str, rows: int, columns: int) -> Nf4Weight:
        if f"{name}.{FP4_STATE}" in self._tensors:
            raise self._wrong(f"{name}.weight", "holds FP4, which is not supported; nf4 is")
        nested = [part for part in BNB_NESTED if f"{name}.{part}" in self._tensors]
        parts = {part: self._tensors.read_stored(f"{name}.{part}").to(self._device) for part in (*BNB_4BIT, *nested)}
        if parts["weight"].dtype != torch.uint8:
            stored = _word(parts["weight"].dtype)
            raise self._wrong(f"{name}.weight", f"is {stored}; uint8 is expected (bnb_4bit_quant_storage)")
        found = self._unpacked(name, lambda: unpack_bnb_nf4(parts))
        self._check_shape(name, found.qdata, rows, columns)
        if not bool(block_absmax(found).isfinite().all()):
            raise self._wrong(f"{name}.weight.absmax", "has values that are no numbers")
        return found

    def _int8(self, name: str, rows: int, columns: int) -> Int8Weight:
        parts = {
            "weight": self._stored(f"{name}.weight", (torch.int8,), rows, columns),
            "SCB": self._finite(f"{name}.SCB", rows),
        }
        if f"{name}.weight_format" in self._tensors:
            parts["weight_format"] = self._tensors.read_stored(f"{name}.weight_format")
        return self._unpacked(name, lambda: unpack_bnb_int8(parts))

    def _fp8(self, name: str, rows: int, columns: int) -> Fp8Weight:
        data = self._stored(f"{name}.weight", (torch.float8_e4m3fn,), rows, columns)
        scale = self._finite(f"{name}.weight_scale", rows, 1)
        return Fp8Weight(data=data, scale=scale.flatten().float())

    def _finite(self, name: str, *shape: int) -> Tensor:
        """Scales: one that is no number would make every output of its rows none."""
        scales = self._stored(name, FLOATS, *shape)
        if not bool(scales.isfinite().all()):
            raise self._wrong(name, "has values that are no numbers")
        return scales

    def _stored(self, name: str, dtypes: tuple[torch.dtype, ...], *shape: int) -> Tensor:
        tensor = self._tensors.read_stored(name)
        self._check_shape(name, tensor, *shape)
        if tensor.dtype not in dtypes:
            wanted = " or ".join(_word(dtype) for dtype in dtypes)
            raise self._wrong(name, f"is {_word(tensor.dtype)}; {wanted} is expected")
        return tensor.to(self._device)

    def _check_shape(self, name: str, tensor: Tensor, *shape: int) -> None:
        if tuple(tensor.shape) != shape:
            raise self._wrong(name, f"is {list(tensor.shape)}, config.json asks for {list(shape)}")

    def _unpacked(self, name: str, unpack: Callable[[], Found]) -> Found:
        try:
            return unpack()
        except (ValueError, KeyError, TypeError) as error:
            raise self._wrong(name, f"cannot be unpacked: {error}") from error

    def _wrong(self, name: str, what: str) -> UserError:
        return UserError(f"{self._tensors.folder}: tensor {name} {what}; fetch the checkpoint again, or make it anew")


def joined(names: Sequence[str], parts: Sequence[StoredMatrix]) -> StoredMatrix:
    """Matrices that read one input as one matrix, rows one below the other; UserError where they do not go together.

    Double quantisation is undone, as its blocks may cross from one matrix to the next.
    """
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(_alike(names, parts, Tensor))
    if isinstance(first, Int8Weight):
        int8 = _alike(names, parts, Int8Weight)
        return Int8Weight(qdata=torch.cat([p.qdata for p in int8]), scale=torch.cat([p.scale for p in int8]))
    if isinstance(first, Fp8Weight):
        fp8 = _alike(names, parts, Fp8Weight)
        return Fp8Weight(data=torch.cat([p.data for p in fp8]), scale=torch.cat([p.scale for p in fp8]))
    if isinstance(first, Nf4Weight):
        nf4 = _alike(names, parts, Nf4Weight)
        if any(part.block != first.block for part in nf4):
            raise UserError(f"{', '.join(names)}: differ in blocksize, and read one input; quantise them alike")
        absmax = torch.cat([block_absmax(part) for part in nf4])
        return Nf4Weight(qdata=torch.cat([p.qdata for p in nf4]), absmax=absmax, block=first.block)
    integers = _alike(names, parts, IntegerWeight)
    if any(not torch.equal(part.group_of, first.group_of) for part in integers):
        raise UserError(
            f"{', '.join(names)}: GPTQ's act-order differs between matrices that read one input; "
            "quantise with a common order (desc_act of whole blocks), or without act-order"
        )
    return replace(
        first,
        codes=torch.cat([part.codes for part in integers]),
        scales=torch.cat([part.scales for part in integers]),
        zeros=torch.cat([part.zeros for part in integers]),
    )


@contextmanager
def packing(names: Sequence[str]) -> Iterator[None]:
    """A layout that no kernel takes is told as a mistake, with the matrices that have it."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{', '.join(names)}: {error}; quantise with another group size") from error


def _alike(names: Sequence[str], parts: Sequence[StoredMatrix], kind: type[Found]) -> list[Found]:
    alike = [part for part in parts if isinstance(part, kind)]
    if len(alike) < len(parts):
        raise UserError(f"{', '.join(names)}: some are quantised and some are not, and they read one input")
    return alike


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
