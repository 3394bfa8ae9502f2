"""A decoder's weights on a GPU in one variant's format, from a checkpoint or made up; it knows names, no arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cluster.errors import UserError
from cluster.model_shape import ModelShape
from cluster.variants import MOST_PACKED_BITS, Method, Variant
from engine.gpu.linear import DenseLinear, FourBitLinear, Fp8Linear, GpuLinear, Head, Int8Linear
from engine.linear import FLOAT_DTYPES, NF4_BLOCK
from engine.quantized_checkpoint import QuantizedCheckpoint, StoredMatrix, joined, packing
from engine.weights import CheckpointTensors
from kernels.checkpoint_layouts import IntegerWeight
from kernels.gpu.fp8 import PackedFp8, pack_fp8
from kernels.gpu.int4 import pack_int4
from kernels.gpu.int8 import Int8Rows, pack_int8
from kernels.gpu.nf4 import pack_nf4_words
from kernels.int8_matmul import Int8Weight
from kernels.nf4_matmul import Nf4Weight, quantize_nf4

DUMMY_STD = 0.02
"""Llama's initializer_range: products of normed rows stay near 1, so nothing overflows however deep the model is."""
DUMMY_GROUP = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLayer:
    """One decoder block; norms and biases in fp32."""

    input_norm: Tensor
    qkv: GpuLinear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: GpuLinear
    post_attention_norm: Tensor
    gate_up: GpuLinear
    down: GpuLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuWeights:
    embedding: Tensor
    """[vocab, hidden]; the head's own where the model ties them"""
    layers: list[GpuLayer]
    final_norm: Tensor
    head: Head


class WeightSource(Protocol):
    """Where tensors come from; everything it gives lies on the device."""

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        """One that no method packs: the embedding, the head."""
        ...

    def vector(self, name: str, size: int) -> Tensor: ...

    def stored(self, name: str, rows: int, columns: int) -> StoredMatrix:
        """A matrix of a block, `name` without .weight."""
        ...


def load_gpu_weights(source: WeightSource, shape: ModelShape, variant: Variant) -> GpuWeights:
    """Block by block, so that beside the packed model there is one unpacked matrix at a time."""
    with torch.inference_mode():
        builder = _Builder(source, shape, variant)
        layers = [builder.layer(f"model.layers.{index}") for index in range(shape.layers)]
        embedding = source.matrix("model.embed_tokens.weight", shape.vocab, shape.hidden).to(builder.dtype)
        tied = shape.tied_embeddings
        head = embedding if tied else source.matrix("lm_head.weight", shape.vocab, shape.hidden).to(builder.dtype)
        final_norm = builder.vector("model.norm.weight", shape.hidden)
    return GpuWeights(embedding=embedding, layers=layers, final_norm=final_norm, head=Head(weight=head))


class _Builder:
    def __init__(self, source: WeightSource, shape: ModelShape, variant: Variant) -> None:
        if variant.head != "same":
            raise UserError(
                f"variants.{variant.name}.head: {variant.head} is for the CPU engine; leave it out on a GPU"
            )
        self.source, self.shape, self.variant = source, shape, variant
        self.dtype = FLOAT_DTYPES[variant.dtype]

    def layer(self, prefix: str) -> GpuLayer:
        shape = self.shape
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = {"q_proj": shape.query_width, "k_proj": shape.kv_width, "v_proj": shape.kv_width}
        return GpuLayer(
            input_norm=self.vector(f"{prefix}.input_layernorm.weight", shape.hidden),
            qkv=self._linear(attention, qkv, shape.hidden, biased=shape.qkv_bias),
            q_norm=self.vector(f"{attention}.q_norm.weight", shape.head_dim) if shape.qk_norm else None,
            k_norm=self.vector(f"{attention}.k_norm.weight", shape.head_dim) if shape.qk_norm else None,
            o=self._linear(attention, {"o_proj": shape.hidden}, shape.query_width),
            post_attention_norm=self.vector(f"{prefix}.post_attention_layernorm.weight", shape.hidden),
            gate_up=self._linear(mlp, {"gate_proj": shape.ffn, "up_proj": shape.ffn}, shape.hidden),
            down=self._linear(mlp, {"down_proj": shape.hidden}, shape.ffn),
        )

    def vector(self, name: str, size: int) -> Tensor:
        return self.source.vector(name, size).float()

    def _linear(self, prefix: str, parts: dict[str, int], columns: int, biased: bool = False) -> GpuLinear:
        """Parts that read the same input become one product, their rows one below the other."""
        names = {f"{prefix}.{part}": rows for part, rows in parts.items()}
        bias = torch.cat([self.vector(f"{name}.bias", rows) for name, rows in names.items()]) if biased else None
        stored = joined([*names], [self.source.stored(name, rows, columns) for name, rows in names.items()])
        with packing([*names]):
            return self._packed(stored, bias)

    def _packed(self, stored: StoredMatrix, bias: Tensor | None) -> GpuLinear:
        if isinstance(stored, Tensor):
            return self._quantised(stored, bias)
        if isinstance(stored, IntegerWeight):
            return self._integers(stored, bias)
        if isinstance(stored, Nf4Weight):
            return FourBitLinear(packed=pack_nf4_words(stored), bias=bias)
        if isinstance(stored, Int8Weight):
            return self._int8(Int8Rows(qdata=stored.qdata, scale=stored.scale), bias)
        return Fp8Linear(packed=PackedFp8(data=stored.data, scale=stored.scale), bias=bias)

    def _quantised(self, weight: Tensor, bias: Tensor | None) -> GpuLinear:
        """A dense matrix of the checkpoint, as the variant wants it; gptq and awq leave such ones as they are."""
        match self.variant.method:
            case "fp8":
                return Fp8Linear(packed=pack_fp8(weight), bias=bias)
            case "int8":
                return self._int8(pack_int8(weight), bias)
            case "nf4":
                columns = weight.shape[1]
                if columns % NF4_BLOCK:
                    raise UserError(f"method nf4 needs rows of a multiple of {NF4_BLOCK}, this model has {columns}")
                return FourBitLinear(packed=pack_nf4_words(quantize_nf4(weight, NF4_BLOCK)), bias=bias)
            case _:
                return DenseLinear(weight=weight.to(self.dtype), bias=bias)

    def _int8(self, packed: Int8Rows, bias: Tensor | None) -> Int8Linear:
        return Int8Linear(packed=packed, outlier_threshold=self.variant.outlier_threshold, bias=bias)

    def _integers(self, weight: IntegerWeight, bias: Tensor | None) -> GpuLinear:
        """Up to 4 bits in words of four; more are unpacked here, as the formula counts them."""
        if weight.bits > MOST_PACKED_BITS:
            return DenseLinear(weight=weight.dequantize().to(self.dtype), bias=bias)
        return FourBitLinear(packed=pack_int4(weight), bias=bias)


class CheckpointSource:
    """A folder's safetensors, in whatever format its config.json declares."""

    def __init__(self, tensors: CheckpointTensors, method: Method, device: str) -> None:
        self._checkpoint = QuantizedCheckpoint(tensors, method, device)

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        return self._checkpoint.dense(name, rows, columns)

    def vector(self, name: str, size: int) -> Tensor:
        return self._checkpoint.dense(name, size)

    def stored(self, name: str, rows: int, columns: int) -> StoredMatrix:
        return self._checkpoint.matrix(name, rows, columns)


class DummySource:
    """Seeded random weights of any shape, for timing: every matrix its own, none of them read from anywhere."""

    def __init__(self, device: str, method: Method, seed: int = 0) -> None:
        self._device, self._method = device, method
        self._generator = torch.Generator(device).manual_seed(seed)

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        weight = torch.empty(rows, columns, dtype=torch.bfloat16, device=self._device)
        return weight.normal_(0.0, DUMMY_STD, generator=self._generator)

    def vector(self, name: str, size: int) -> Tensor:
        fill = 0.0 if name.endswith(".bias") else 1.0
        return torch.full((size,), fill, device=self._device)

    def stored(self, name: str, rows: int, columns: int) -> StoredMatrix:
        """Integers for gptq and awq, which no engine quantises by itself."""
        if self._method not in ("gptq", "awq"):
            return self.matrix(f"{name}.weight", rows, columns)

        def random(*shape: int, high: int) -> Tensor:
            return torch.randint(high, shape, dtype=torch.uint8, device=self._device, generator=self._generator)

        groups = columns // DUMMY_GROUP if columns % DUMMY_GROUP == 0 else 1
        # Uniform codes have a standard deviation of 4.6 steps.
        scales = (0.5 + random(rows, groups, high=256).float() / 256) * (DUMMY_STD / 4.6)
        return IntegerWeight(
            codes=random(rows, columns, high=16),
            scales=scales.to(torch.bfloat16),
            zeros=random(rows, groups, high=4) + 6,
            group_of=torch.arange(columns, dtype=torch.int32, device=self._device) // (columns // groups),
            bits=4,
        )
