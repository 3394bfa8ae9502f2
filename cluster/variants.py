"""Variant: the model at one precision, with its bytes and its quality; it knows no tensors and how fast nothing is."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from cluster.model_shape import ModelShape

Method = Literal["none", "int8", "nf4", "fp8", "gptq", "awq"]
FlopsDtype = Literal["fp32", "bf16", "int8", "fp8"]

SUPPORTED_METHODS: tuple[Method, ...] = ("none", "int8", "nf4")
"""What the engine runs; the sizes of the other methods are known for planning."""

DTYPE_BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """How a method packs a linear's weights: bits a weight and the bytes of scales for each group of them."""

    bits: int
    scale_bytes: int
    group_size: int | None
    """Weights that share a scale; None: a row does."""

    def matrix_bytes(self, rows: int, columns: int) -> int:
        groups = rows if self.group_size is None else ceil(rows * columns / self.group_size)
        return ceil(rows * columns * self.bits / 8) + groups * self.scale_bytes


FORMATS: dict[Method, WeightFormat] = {
    "int8": WeightFormat(bits=8, scale_bytes=4, group_size=None),  # LLM.int8: fp32 absmax a row
    "nf4": WeightFormat(bits=4, scale_bytes=4, group_size=64),  # QLoRA without double quantisation: fp32 absmax
    "fp8": WeightFormat(bits=8, scale_bytes=4, group_size=None),
    "gptq": WeightFormat(bits=4, scale_bytes=4, group_size=128),  # fp16 scale and fp16 zero: 4.25 bits a weight
    "awq": WeightFormat(bits=4, scale_bytes=4, group_size=128),
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
    quality: float | None = None
    """bf16 perplexity / its own, as `quantfleet evaluate --register` measured it; None: not measured."""

    @property
    def flops_dtype(self) -> FlopsDtype:
        """The arithmetic whose peak bounds its linears; nf4, gptq and awq are unpacked to `dtype` first."""
        return self.method if self.method in ("int8", "fp8") else self.dtype

    def matrix_bytes(self, rows: int, columns: int) -> int:
        if self.method == "none":
            return rows * columns * DTYPE_BYTES[self.dtype]
        return FORMATS[self.method].matrix_bytes(rows, columns)

    def head_bytes(self, shape: ModelShape) -> int:
        if self.head == "int8":
            return FORMATS["int8"].matrix_bytes(shape.vocab, shape.hidden)
        return shape.vocab * shape.hidden * DTYPE_BYTES[self.dtype]

    def block_bytes(self, shape: ModelShape) -> int:
        """All decoder blocks: their linears, and norms and biases in fp32."""
        linears = sum(self.matrix_bytes(linear.rows, linear.columns) for linear in shape.block_linears)
        return shape.layers * linears + 4 * shape.vector_params

    def resident_bytes(self, shape: ModelShape) -> int:
        """What a replica holds. A tied embedding is the head itself, held once."""
        embedding = 0 if shape.tied_embeddings else shape.vocab * shape.hidden * DTYPE_BYTES[self.dtype]
        return self.block_bytes(shape) + self.head_bytes(shape) + embedding

    def read_bytes(self, shape: ModelShape) -> int:
        """What a decode step reads: all but the embedding, of which a few rows are looked up."""
        return self.block_bytes(shape) + self.head_bytes(shape)
