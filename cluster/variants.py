"""Variant: the model at one precision, with its bytes and its quality; it knows no tensors and how fast nothing is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from cluster.accelerators import Kind
from cluster.model_shape import ModelShape

Method = Literal["none", "int8", "nf4", "fp8", "gptq", "awq"]
FlopsDtype = Literal["fp32", "bf16", "int8", "fp8"]

METHODS: dict[Kind, tuple[Method, ...]] = {
    "cpu": ("none", "int8", "nf4", "gptq", "awq"),
    "gpu": ("none", "int8", "nf4", "fp8", "gptq", "awq"),
}
"""What the engine runs on which hardware."""

DTYPE_BYTES = {"bf16": 2, "fp32": 4}


PANEL_ROWS = 16
"""The kernels lay weights out in panels of this many rows, the last one filled up with zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """How a matrix is packed: bits a weight, and the bytes of scales for each group of them."""

    bits: int
    column_multiple: int = 1
    """Rows are filled up with zeros to it."""
    scale_bytes: int = 0
    group_size: int | None = None
    """Weights that share a scale; None: all of a row."""

    def matrix_bytes(self, rows: int, columns: int) -> int:
        rows, columns = _padded(rows, PANEL_ROWS), _padded(columns, self.column_multiple)
        groups = rows * ceil(columns / (self.group_size or columns))
        return rows * columns * self.bits // 8 + groups * self.scale_bytes


DENSE = {"bf16": WeightFormat(bits=16, column_multiple=2), "fp32": WeightFormat(bits=32)}
_INT8 = WeightFormat(bits=8, column_multiple=16, scale_bytes=4)  # LLM.int8: fp32 absmax a row
_NF4 = WeightFormat(bits=4, column_multiple=64, scale_bytes=4, group_size=64)  # fp32 absmax, no double quantising
_INT4_CPU = WeightFormat(bits=4, column_multiple=4, scale_bytes=8)  # fp32 scale and zero
_INT4_GPU = WeightFormat(bits=4, column_multiple=8, scale_bytes=4)  # fp16 scale, as much for the zero: 4.25 bits at 128
_FP8 = WeightFormat(bits=8, column_multiple=16, scale_bytes=4)
FORMATS: dict[Kind, dict[Method, WeightFormat]] = {
    "cpu": {"int8": _INT8, "nf4": _NF4, "gptq": _INT4_CPU, "awq": _INT4_CPU},
    "gpu": {"int8": _INT8, "nf4": _NF4, "gptq": _INT4_GPU, "awq": _INT4_GPU, "fp8": _FP8},
}
"""How the engine holds each method's matrices on which hardware."""
ORDER_BYTES = 8
"""A column's place, where the groups of a row are no neighbours (GPTQ's act-order)."""
MOST_PACKED_BITS = 4
"""Integers of more bits are unpacked to `dtype` as they are loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The model at one precision. The embedding and the head stay in `dtype`, unless `head` says int8."""

    name: str
    method: Method = "none"
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Of whatever the method does not pack; for the method none that is every weight."""
    source: str | None = None
    """A checkpoint of its own; None quantises the model's weights on load."""
    bits: int = 4
    """Of gptq and awq, as its checkpoint has them; 2 and 3 bits are held in 4."""
    group_size: int | None = 128
    """Columns that share a scale, of gptq and awq; None: all of a row."""
    act_order: bool = False
    """Of gptq: a group's columns are no neighbours."""
    head: Literal["same", "int8"] = "same"
    outlier_threshold: float | None = 6.0
    """LLM.int8: a column with an activation beyond it is multiplied in floating point; None: no such columns."""
    activation_bits: int = 8
    """Of the method int8; LLM.int8 has 8, the CPU kernel up to 12 at the same speed."""
    quality: float | None = None
    """bf16 perplexity / its own, as `quantfleet evaluate --register` measured it; None: not measured."""

    @property
    def flops_dtype(self) -> FlopsDtype:
        """The arithmetic whose peak bounds its linears; nf4, gptq and awq are unpacked to `dtype` first."""
        return self.method if self.method in ("int8", "fp8") else self.dtype

    def matrix_bytes(self, rows: int, columns: int, kind: Kind) -> int:
        packed = DENSE[self.dtype] if self.method == "none" else FORMATS[kind][self.method]
        if self.method not in ("gptq", "awq"):
            return packed.matrix_bytes(rows, columns)
        if self.bits > MOST_PACKED_BITS:
            return DENSE[self.dtype].matrix_bytes(rows, columns)
        order = ORDER_BYTES * columns if self.act_order else 0
        return replace(packed, group_size=self.group_size).matrix_bytes(rows, columns) + order

    def head_bytes(self, shape: ModelShape, kind: Kind) -> int:
        packed = FORMATS[kind]["int8"] if self.head == "int8" else DENSE[self.dtype]
        return packed.matrix_bytes(shape.vocab, shape.hidden)

    def block_bytes(self, shape: ModelShape, kind: Kind) -> int:
        """All decoder blocks: their linears, and norms and biases in fp32."""
        linears = sum(self.matrix_bytes(linear.rows, linear.columns, kind) for linear in shape.block_linears)
        return shape.layers * linears + 4 * shape.vector_params

    def resident_bytes(self, shape: ModelShape, kind: Kind) -> int:
        """What a replica holds. A tied embedding is the head itself, held once."""
        embedding = 0 if shape.tied_embeddings else DENSE[self.dtype].matrix_bytes(shape.vocab, shape.hidden)
        return self.block_bytes(shape, kind) + self.head_bytes(shape, kind) + embedding

    def read_bytes(self, shape: ModelShape, kind: Kind) -> int:
        """What a decode step reads: all but the embedding, of which a few rows are looked up."""
        return self.block_bytes(shape, kind) + self.head_bytes(shape, kind)


def _padded(count: int, multiple: int) -> int:
    return ceil(count / multiple) * multiple
