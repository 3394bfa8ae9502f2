"""A decoder's weights on a GPU in one variant's format, from a checkpoint or made up; it knows names, no arithmetic."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cluster.errors import UserError
from cluster.model_shape import ModelShape
from cluster.variants import Variant
from engine.gpu.linear import DenseLinear, FourBitLinear, Fp8Linear, GpuLinear, Head, Int8Linear
from engine.linear import FLOAT_DTYPES, NF4_BLOCK
from engine.weights import CheckpointTensors
from kernels.gpu.fp8 import pack_fp8
from kernels.gpu.int4 import Int4Codes, awq_codes, gptq_codes, pack_int4
from kernels.gpu.int8 import pack_int8
from kernels.gpu.nf4 import pack_nf4_words
from kernels.nf4_matmul import quantize_nf4

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

    def matrix(self, name: str, rows: int, columns: int) -> Tensor: ...

    def vector(self, name: str, size: int) -> Tensor: ...

    def int4(self, name: str, rows: int, columns: int) -> Int4Codes: ...


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
        if self.variant.method in ("gptq", "awq"):
            return self._int4(names, columns, bias)
        weight = torch.cat([self.source.matrix(f"{name}.weight", rows, columns) for name, rows in names.items()])
        match self.variant.method:
            case "none":
                return DenseLinear(weight=weight.to(self.dtype), bias=bias)
            case "fp8":
                return Fp8Linear(packed=pack_fp8(weight), bias=bias)
            case "int8":
                return Int8Linear(packed=pack_int8(weight), outlier_threshold=self.variant.outlier_threshold, bias=bias)
            case "nf4":
                if columns % NF4_BLOCK:
                    raise UserError(f"method nf4 needs rows of a multiple of {NF4_BLOCK}, this model has {columns}")
                return FourBitLinear(packed=pack_nf4_words(quantize_nf4(weight, NF4_BLOCK)), bias=bias)
            case method:
                raise UserError(f"method {method!r} is not run by this engine on a GPU")

    def _int4(self, names: dict[str, int], columns: int, bias: Tensor | None) -> FourBitLinear:
        parts = [self.source.int4(name, rows, columns) for name, rows in names.items()]
        orders = [part.input_order for part in parts]
        if any(order is not None for order in orders) and not all(
            order is not None and orders[0] is not None and torch.equal(order, orders[0]) for order in orders
        ):
            raise UserError(
                f"{', '.join(names)}: GPTQ's act-order differs between matrices that read one input; "
                "quantise with a common order (desc_act of whole blocks), or without act-order"
            )
        packed = pack_int4(
            torch.cat([part.codes for part in parts]),
            torch.cat([part.scales for part in parts]),
            torch.cat([part.zeros for part in parts]),
            input_order=orders[0],
        )
        return FourBitLinear(packed=packed, bias=bias)


class CheckpointSource:
    """A folder's safetensors; 4-bit matrices in the layout that its config.json declares."""

    def __init__(self, tensors: CheckpointTensors, device: str) -> None:
        self._tensors, self._device = tensors, device
        self._quantization = _quantization_config(tensors.folder)

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        return self._tensors.read(name, rows, columns).to(self._device)

    def vector(self, name: str, size: int) -> Tensor:
        return self._tensors.read(name, size).to(self._device)

    def int4(self, name: str, rows: int, columns: int) -> Int4Codes:
        config = self._quantization
        method, bits = config.get("quant_method"), config.get("bits", 4)
        if bits != 4:
            raise UserError(f"{self._tensors.folder}: {method} of {bits} bits is not supported; 4 bits are")
        if method not in ("gptq", "awq"):
            raise UserError(
                f"{self._tensors.folder}: config.json names no gptq or awq quantization_config, which the variant's"
                " method asks for; give a checkpoint in one of these formats as its source"
            )
        # AutoAWQ's other layouts (gemv, gemv_fast, marlin) put the same words elsewhere.
        version = str(config.get("version", "gemm")).lower()
        if method == "awq" and version != "gemm":
            raise UserError(f"{self._tensors.folder}: awq of version {version} is not supported; version gemm is")
        qweight, qzeros, scales = (self._packed(name, part) for part in ("qweight", "qzeros", "scales"))
        if method == "awq":
            found = awq_codes(qweight, qzeros, scales)
        else:
            g_idx = self._packed(name, "g_idx") if f"{name}.g_idx" in self._tensors else None
            found = gptq_codes(qweight, qzeros, scales, g_idx, v1=config.get("checkpoint_format") != "gptq_v2")
        if tuple(found.codes.shape) != (rows, columns):
            raise UserError(
                f"{self._tensors.folder}: {name} unpacks to {list(found.codes.shape)},"
                f" config.json asks for {[rows, columns]}"
            )
        return found

    def _packed(self, name: str, part: str) -> Tensor:
        return self._tensors.read_packed(f"{name}.{part}").to(self._device)


class DummySource:
    """Seeded random weights of any shape, for timing: every matrix its own, none of them read from anywhere."""

    def __init__(self, device: str, seed: int = 0) -> None:
        self._device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        weight = torch.empty(rows, columns, dtype=torch.bfloat16, device=self._device)
        return weight.normal_(0.0, DUMMY_STD, generator=self._generator)

    def vector(self, name: str, size: int) -> Tensor:
        fill = 0.0 if name.endswith(".bias") else 1.0
        return torch.full((size,), fill, device=self._device)

    def int4(self, name: str, rows: int, columns: int) -> Int4Codes:
        def random(*shape: int, high: int) -> Tensor:
            return torch.randint(high, shape, dtype=torch.uint8, device=self._device, generator=self._generator)

        groups = columns // DUMMY_GROUP if columns % DUMMY_GROUP == 0 else 1
        # Uniform codes have a standard deviation of 4.6 steps.
        scales = (0.5 + random(rows, groups, high=256).float() / 256) * (DUMMY_STD / 4.6)
        return Int4Codes(
            codes=random(rows, columns, high=16),
            scales=scales.to(torch.bfloat16),
            zeros=random(rows, groups, high=4) + 6,
        )


def _quantization_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = config.get("quantization_config") or {}
    return dict(found)
