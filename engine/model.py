"""The decoder of the Llama, Mistral, Qwen2 and Qwen3 families over a step's tokens; it knows no requests."""

from __future__ import annotations

from torch import Tensor

from engine.decoder_config import DecoderConfig
from engine.decoder_weights import DecoderWeights, LayerWeights
from engine.token_batch import TokenBatch
from kernels.activation import silu_mul
from kernels.kv_layout import LayerCache
from kernels.paged_attention import paged_attention
from kernels.rms_norm import rms_norm
from kernels.rotary import rope_tables, rotary_kv_write


class Decoder:
    """Embedding, blocks, final norm, head. Activations and the residual stream are fp32 whatever the weights are."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, max_context: int, device: str = "cpu") -> None:
        self._embedding, self._head = weights.embedding, weights.head
        self._layers = weights.layers
        self._norms = [layer.input_norm for layer in weights.layers] + [weights.final_norm]
        self._eps = config.rms_norm_eps
        self._rope = rope_tables(
            config.shape.head_dim, max_context, config.rope["rope_theta"], config.rope, device=device
        )

    def embed(self, token_ids: Tensor) -> Tensor:
        """[T] -> [T, hidden] fp32: what the residual stream starts with."""
        return self._embedding.rows(token_ids)

    def hidden_states(self, residual: Tensor, batch: TokenBatch, kv_cache: list[LayerCache]) -> Tensor:
        """[T, hidden], normed and ready for the head; K and V of the batch's tokens are in the cache afterwards.

        Each block adds to the residual stream, in place, twice; both sums happen inside the norm that reads them next.
        """
        x = rms_norm(residual, self._norms[0], self._eps)
        for layer, cache, next_norm in zip(self._layers, kv_cache, self._norms[1:], strict=True):
            attended = self._attention(x, layer, cache, batch)
            x = rms_norm(attended, layer.post_attention_norm, self._eps, residual)
            x = rms_norm(_feed_forward(x, layer), next_norm, self._eps, residual)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> [R, vocab] fp32"""
        return self._head.forward(hidden)

    def _attention(self, x: Tensor, layer: LayerWeights, cache: LayerCache, batch: TokenBatch) -> Tensor:
        qkv = layer.qkv.forward(x)
        q = rotary_kv_write(qkv, batch.positions, batch.slots, self._rope, cache, layer.q_norm, layer.k_norm, self._eps)
        attended = paged_attention(q, cache, batch.block_tables, batch.sequence_of_token, batch.positions_int32)
        return layer.o.forward(attended)


def _feed_forward(x: Tensor, layer: LayerWeights) -> Tensor:
    return layer.down.forward(silu_mul(layer.gate_up.forward(x)))
