"""A decoder's weights in one variant's format, from a checkpoint's tensors; it knows the names, not the arithmetic."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from cluster.model_shape import ModelShape
from cluster.variants import Method, Variant
from engine.linear import FLOAT_DTYPES, DenseLinear, Int8Linear, Linear, Packed, linear_of, on_device, pack
from engine.packed_cache import PackedCache
from engine.quantized_checkpoint import QuantizedCheckpoint, StoredMatrix, joined, packing
from engine.weights import CheckpointTensors


class Embedding(Protocol):
    """Token vectors by id."""

    def rows(self, ids: Tensor) -> Tensor:
        """[T] -> [T, hidden] fp32"""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingTable:
    """An embedding apart from the head: plain rows, of which a step reads a few."""

    table: Tensor

    def rows(self, ids: Tensor) -> Tensor:
        return self.table[ids].float()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder block; norms and biases in fp32."""

    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear
    post_attention_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderWeights:
    """All of them; `nbytes` counts what is resident, a tied embedding once."""

    embedding: Embedding
    layers: list[LayerWeights]
    final_norm: Tensor
    head: Linear
    nbytes: int


def load_decoder_weights(folder: Path, shape: ModelShape, variant: Variant, device: str = "cpu") -> DecoderWeights:
    """Reads, quantises and packs block by block, so that the originals are never in memory all at once."""
    with CheckpointTensors(folder) as tensors, torch.inference_mode():
        checkpoint = QuantizedCheckpoint(tensors, variant.method, device)
        weights = _Loader(checkpoint, shape, variant, PackedCache(folder, _label(variant)), device).load()
    _return_freed_memory()
    return weights


def _return_freed_memory() -> None:
    """glibc keeps what packing freed, 140 MB with the embedded model, until it is told not to."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _label(variant: Variant) -> str:
    return f"{variant.method}-{variant.dtype}-head-{variant.head}"


class _Loader:
    """Walks the model's tensors once, counting the bytes it keeps."""

    def __init__(
        self, checkpoint: QuantizedCheckpoint, shape: ModelShape, variant: Variant, cache: PackedCache, device: str
    ) -> None:
        self.checkpoint, self.shape, self.variant, self.cache, self.device = checkpoint, shape, variant, cache, device
        self.nbytes = 0

    def load(self) -> DecoderWeights:
        layers = [self._layer(f"model.layers.{index}") for index in range(self.shape.layers)]
        final_norm = self._vector("model.norm.weight", self.shape.hidden)
        head = self._head()
        embedding: Embedding = head if self.shape.tied_embeddings else self._embedding()
        self.cache.save()
        return DecoderWeights(embedding=embedding, layers=layers, final_norm=final_norm, head=head, nbytes=self.nbytes)

    def _layer(self, prefix: str) -> LayerWeights:
        shape = self.shape
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = {"q_proj": shape.query_width, "k_proj": shape.kv_width, "v_proj": shape.kv_width}
        return LayerWeights(
            input_norm=self._vector(f"{prefix}.input_layernorm.weight", shape.hidden),
            qkv=self._linear(attention, qkv, shape.hidden, biased=shape.qkv_bias),
            q_norm=self._vector(f"{attention}.q_norm.weight", shape.head_dim) if shape.qk_norm else None,
            k_norm=self._vector(f"{attention}.k_norm.weight", shape.head_dim) if shape.qk_norm else None,
            o=self._linear(attention, {"o_proj": shape.hidden}, shape.query_width),
            post_attention_norm=self._vector(f"{prefix}.post_attention_layernorm.weight", shape.hidden),
            gate_up=self._linear(mlp, {"gate_proj": shape.ffn, "up_proj": shape.ffn}, shape.hidden),
            down=self._linear(mlp, {"down_proj": shape.hidden}, shape.ffn),
        )

    def _linear(self, prefix: str, parts: dict[str, int], columns: int, biased: bool = False) -> Linear:
        """Parts that read the same input become one product, their rows one below the other."""
        names = {f"{prefix}.{part}": rows for part, rows in parts.items()}
        bias = torch.cat([self._vector(f"{name}.bias", rows) for name, rows in names.items()]) if biased else None
        packed = self._packed("+".join(names), self.variant.method, lambda: self._stored(names, columns))
        return linear_of(packed, bias, self.variant)

    def _head(self) -> DenseLinear | Int8Linear:
        name = "model.embed_tokens" if self.shape.tied_embeddings else "lm_head"
        method: Method = "int8" if self.variant.head == "int8" else "none"
        size = self.shape.vocab, self.shape.hidden
        packed = self._packed(name, method, lambda: self.checkpoint.dense(f"{name}.weight", *size))
        head = linear_of(packed, None, self.variant)
        assert isinstance(head, DenseLinear | Int8Linear), "a head is looked up row by row, which no 4-bit panel is for"
        return head

    def _embedding(self) -> EmbeddingTable:
        table = self.checkpoint.dense("model.embed_tokens.weight", self.shape.vocab, self.shape.hidden)
        table = table.to(FLOAT_DTYPES[self.variant.dtype])
        self.nbytes += table.nbytes
        return EmbeddingTable(table=table)

    def _packed(self, name: str, method: Method, stored: Callable[[], StoredMatrix]) -> Packed:
        """From the cache where quantising made them; plain ones are packed as fast as they are read."""
        packed = None if method == "none" else self.cache.get(name)
        if packed is None:
            weight = stored()
            with packing([name]):
                packed = pack(weight, method, self.variant.dtype)
            self.cache.put(name, packed)
        self.nbytes += packed.nbytes
        return on_device(packed, self.device)

    def _stored(self, names: dict[str, int], columns: int) -> StoredMatrix:
        return joined([*names], [self.checkpoint.matrix(name, rows, columns) for name, rows in names.items()])

    def _vector(self, name: str, size: int) -> Tensor:
        vector = self.checkpoint.dense(name, size).float()
        self.nbytes += vector.nbytes
        return vector
