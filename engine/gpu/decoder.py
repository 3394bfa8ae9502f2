"""The decoder of the Llama, Mistral, Qwen2 and Qwen3 families on a GPU: one row, a batch of decodes, or prompts.

It knows no requests. Activations and the residual stream are bf16 (fp32 for a variant in fp32), sums are in fp32. Three
forms of one computation, because each is bound by something else: one row by launches and weight bytes, so its norms,
gates and sums are inside the products; decodes by bytes; prompts by arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from engine.decoder_config import DecoderConfig
from engine.gpu.linear import Activation, RowEnds
from engine.gpu.weights import GpuLayer, GpuWeights
from kernels.gpu.activation import silu_mul
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
    """Tokens of the longest chunk."""


class GpuDecoder:
    def __init__(self, config: DecoderConfig, weights: GpuWeights, max_context: int, device: str) -> None:
        self.weights = weights
        self.vocab = config.shape.vocab
        self._layers = weights.layers
        self._eps = config.rms_norm_eps
        rope = config.rope
        self._rope = rope_tables(config.shape.head_dim, max_context, rope["rope_theta"], rope, device=device)

    def embed(self, token_ids: Tensor) -> Tensor:
        """[T] int64 -> [T, hidden]: a fresh residual stream"""
        return functional.embedding(token_ids, self.weights.embedding)

    def decode(self, token_ids: Tensor, context: DecodeContext, kv_cache: list[PagedKv], logits: Tensor) -> None:
        """[B] int64 -> `logits` [B, vocab] fp32; K and V of the tokens are in the cache afterwards."""
        residual = self.embed(token_ids)
        if len(token_ids) == 1:
            self._decode_row(residual, context, kv_cache, logits)
            return
        x = self._normed(residual, self._layers[0].input_norm, None, self._layers[0])
        for index, (layer, kv) in enumerate(zip(self._layers, kv_cache, strict=True)):
            attended = self._attend(layer.qkv.rows(x), layer, context, kv)
            x = self._feed_forward(layer.o.rows(attended), residual, layer)
            x = self._next_input(x, residual, index)
        assert isinstance(x, Tensor)
        self.weights.head.rows(x, logits)

    def prompt(self, token_ids: Tensor, context: PromptContext, kv_cache: list[PagedKv]) -> Tensor:
        """[T] int64 -> [T, hidden], normed and ready for the head."""
        residual = self.embed(token_ids)
        x = self._normed(residual, self._layers[0].input_norm, None, self._layers[0])
        for index, (layer, kv) in enumerate(zip(self._layers, kv_cache, strict=True)):
            qkv = layer.qkv.rows(x)
            q = rotary_kv_write(
                qkv, context.positions, context.slots, self._rope, kv, layer.q_norm, layer.k_norm, self._eps
            )
            attended = prefill_attention(
                q,
                kv,
                context.block_tables,
                context.rows,
                context.query_starts,
                context.context_lens,
                context.longest,
            )
            x = self._feed_forward(layer.o.rows(attended.flatten(1)), residual, layer)
            x = self._next_input(x, residual, index)
        assert isinstance(x, Tensor)
        return x

    def _decode_row(self, residual: Tensor, context: DecodeContext, kv_cache: list[PagedKv], logits: Tensor) -> None:
        """Five launches a layer, each but attention reading weights while the one before it drains."""
        for layer, kv in zip(self._layers, kv_cache, strict=True):
            qkv = layer.qkv.row(residual, RowEnds(norm=(layer.input_norm, self._eps)))
            attended = self._attend(qkv, layer, context, kv)
            layer.o.row(attended, RowEnds(residual=residual))
            gated = layer.gate_up.row(residual, RowEnds(norm=(layer.post_attention_norm, self._eps), gated=True))
            layer.down.row(gated, RowEnds(residual=residual))
        self.weights.head.row(residual, (self.weights.final_norm, self._eps), logits)

    def _attend(self, qkv: Tensor, layer: GpuLayer, context: DecodeContext, kv: PagedKv) -> Tensor:
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

    def _feed_forward(self, attended: Tensor, residual: Tensor, layer: GpuLayer) -> Tensor:
        """From attention's output to what the block adds to the residual stream last."""
        x = rms_norm(attended, layer.post_attention_norm, self._eps, residual, quantize=layer.gate_up.wants)
        return layer.down.rows(silu_mul(layer.gate_up.rows(x), quantize=layer.down.wants))

    def _next_input(self, added: Tensor, residual: Tensor, index: int) -> Activation:
        """Adds what a block gave, and norms for the next one, or for the head."""
        if index + 1 == len(self._layers):
            return rms_norm(added, self.weights.final_norm, self._eps, residual)
        following = self._layers[index + 1]
        return self._normed(added, following.input_norm, residual, following)

    def _normed(self, x: Tensor, norm: Tensor, residual: Tensor | None, layer: GpuLayer) -> Activation:
        return rms_norm(x, norm, self._eps, residual, quantize=layer.qkv.wants)
