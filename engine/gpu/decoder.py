"""The decoder of the Llama, Mistral, Qwen2 and Qwen3 families on a GPU, for a batch of decodes or for prompts.

It knows no requests. Activations and the residual stream are bf16 (fp32 for a variant in fp32), sums are in fp32.
Decodes and prompts differ in their attention alone; which kernel multiplies is each linear's own choice by its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.decoder_config import DecoderConfig
from engine.gpu.weights import GpuLayer, GpuWeights
from kernels.gpu.decode_attention import SplitPlan, decode_attention
from kernels.gpu.kv_cache import PagedKv
from kernels.gpu.prefill_attention import prefill_attention
from kernels.gpu.rms_norm import rms_norm
from kernels.gpu.rotary import rotary_kv_write
from kernels.rotary import rope_tables


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeContext:
    """Where a batch of B decodes finds its caches."""

    block_tables: Tensor
    plan: SplitPlan
    """Of the batch's lengths, the new tokens counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptContext:
    """T tokens of S prompts' chunks, one after another."""

    positions: Tensor
    """[T] int32"""
    slots: Tensor
    """[T] int32: block * block_size + offset"""
    block_tables: Tensor
    rows: Tensor
    """[S] int32"""
    query_starts: Tensor
    """[S + 1] int32"""
    context_lens: Tensor
    """[S] int32: tokens of the sequence that are in the cache before its chunk"""
    longest: int
    """Tokens that no chunk exceeds."""
    attended: Tensor | None = None
    """[T, H, D]: where attention goes, if it has a place of its own."""


Attend = Callable[[Tensor, GpuLayer, PagedKv], Tensor]
"""qkv [T, (H + 2 KVH) * D] -> [T, H * D], K and V kept in the layer's cache"""


class GpuDecoder:
    def __init__(self, config: DecoderConfig, weights: GpuWeights, max_context: int, device: str) -> None:
        self.weights = weights
        self.vocab, self.shape = config.shape.vocab, config.shape
        self._layers = weights.layers
        self._eps = config.rms_norm_eps
        rope = config.rope
        self._rope = rope_tables(config.shape.head_dim, max_context, rope["rope_theta"], rope, device=device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream."""
        return self.weights.embedding.dtype

    def embed(self, token_ids: Tensor) -> Tensor:
        """[T] int64 -> [T, hidden]: a fresh residual stream"""
        return functional.embedding(token_ids, self.weights.embedding)

    def decode(self, token_ids: Tensor, context: DecodeContext, kv_cache: list[PagedKv], logits: Tensor) -> None:
        """[B] int64 -> `logits` [B, vocab] fp32; K and V of the tokens are in the cache afterwards."""

        def attend(qkv: Tensor, layer: GpuLayer, kv: PagedKv) -> Tensor:
            return decode_attention(
                qkv,
                kv,
                context.block_tables,
                context.plan,
                self._rope,
                q_norm=layer.q_norm,
                k_norm=layer.k_norm,
                eps=self._eps,
            )

        self.weights.head.rows(self._hidden(token_ids, kv_cache, attend), logits)

    def prompt(self, token_ids: Tensor, context: PromptContext, kv_cache: list[PagedKv]) -> Tensor:
        """[T] int64 -> [T, hidden], normed and ready for the head."""

        def attend(qkv: Tensor, layer: GpuLayer, kv: PagedKv) -> Tensor:
            q = rotary_kv_write(
                qkv, context.positions, context.slots, self._rope, kv, layer.q_norm, layer.k_norm, self._eps
            )
            return prefill_attention(
                q,
                kv,
                context.block_tables,
                context.rows,
                context.query_starts,
                context.context_lens,
                context.longest,
                context.attended,
            ).flatten(1)

        return self._hidden(token_ids, kv_cache, attend)

    def _hidden(self, token_ids: Tensor, kv_cache: list[PagedKv], attend: Attend) -> Tensor:
        """Each block adds to the residual stream, in place, twice; both sums happen in the norm that reads it next."""
        num_rows, layers = len(token_ids), self._layers
        residual = self.embed(token_ids)
        x = rms_norm(residual, layers[0].input_norm, self._eps, quantize=layers[0].qkv.wants(num_rows))
        for index, (layer, kv) in enumerate(zip(layers, kv_cache, strict=True)):
            attended = attend(layer.qkv.rows(x), layer, kv)
            wanted = layer.gate_up.wants(num_rows)
            x = rms_norm(layer.o.rows(attended), layer.post_attention_norm, self._eps, residual, quantize=wanted)
            added = layer.down.rows(layer.gate_up.gated(x, quantize=layer.down.wants(num_rows)))
            following = layers[index + 1] if index + 1 < len(layers) else None
            norm = self.weights.final_norm if following is None else following.input_norm
            wanted = None if following is None else following.qkv.wants(num_rows)
            x = rms_norm(added, norm, self._eps, residual, quantize=wanted)
        assert isinstance(x, Tensor)
        return x
