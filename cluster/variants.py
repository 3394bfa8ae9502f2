"""Variant: the model at one precision, with its bytes and its quality; it knows no tensors and how fast nothing is."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from cluster.accelerators import Kind
from cluster.model_shape import ModelShape

Method = Literal["none", "int8", "nf4", "fp8", "gptq", "awq"]
FlopsDtype = Literal["fp32", "bf16", "int8", "fp8"]

METHODS: dict[Kind, tuple[Method, ...]] = {
    "cpu": ("none", "int8", "nf4"),
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
FORMATS: dict[Method, WeightFormat] = {
    "int8": WeightFormat(bits=8, column_multiple=16, scale_bytes=4),  # LLM.int8: fp32 absmax a row
    "nf4": WeightFormat(bits=4, column_multiple=64, scale_bytes=4, group_size=64),  # fp32 absmax, no double quantising
    "fp8": WeightFormat(bits=8, column_multiple=16, scale_bytes=4),
    "gptq": WeightFormat(bits=4, column_multiple=8, scale_bytes=4, group_size=128),  # fp16 scale and zero: 4.25 bits
    "awq": WeightFormat(bits=4, column_multiple=8, scale_bytes=4, group_size=128),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The model at one precision. The embedding and the head stay in `dtype`, unless `head` says int8."""

    name: str
    method: Method = "none"
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Of whatever the method does not pack; for the method none that is every weight."""
    source: str | None = None
    """A checkpoint of its own (gptq, awq); None quantises the model's weights on load."""
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

    def matrix_bytes(self, rows: int, columns: int) -> int:
        packed = DENSE[self.dtype] if self.method == "none" else FORMATS[self.method]
        return packed.matrix_bytes(rows, columns)

    def head_bytes(self, shape: ModelShape) -> int:
        packed = FORMATS["int8"] if self.head == "int8" else DENSE[self.dtype]
        return packed.matrix_bytes(shape.vocab, shape.hidden)

    def block_bytes(self, shape: ModelShape) -> int:
        """All decoder blocks: their linears, and norms and biases in fp32."""
        linears = sum(self.matrix_bytes(linear.rows, linear.columns) for linear in shape.block_linears)
        return shape.layers * linears + 4 * shape.vector_params

    def resident_bytes(self, shape: ModelShape) -> int:
        """What a replica holds. A tied embedding is the head itself, held once."""
        embedding = 0 if shape.tied_embeddings else DENSE[self.dtype].matrix_bytes(shape.vocab, shape.hidden)
        return self.block_bytes(shape) + self.head_bytes(shape) + embedding

    def read_bytes(self, shape: ModelShape) -> int:
        """What a decode step reads: all but the embedding, of which a few rows are looked up."""
        return self.block_bytes(shape) + self.head_bytes(shape)


def _padded(count: int, multiple: int) -> int:
    return ceil(count / multiple) * multiple
