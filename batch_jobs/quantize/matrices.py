"""The seven matrices of a decoder block, in the order in which their inputs come to be; it holds no weights."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.model_shape import LinearShape, ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Matrices that read the same inputs, and the operation that makes those."""

    matrices: tuple[str, ...]
    previous: str
    adds_to_residual: bool = False
    """Its outputs are added to the residual stream as they are."""


STAGES = (
    Stage(matrices=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), previous="input_layernorm"),
    Stage(matrices=("self_attn.o_proj",), previous="self_attn.v_proj", adds_to_residual=True),
    Stage(matrices=("mlp.gate_proj", "mlp.up_proj"), previous="post_attention_layernorm"),
    Stage(matrices=("mlp.down_proj",), previous="mlp.up_proj", adds_to_residual=True),
)


def block_prefix(index: int) -> str:
    return f"model.layers.{index}."


def block_matrices(shape: ModelShape) -> tuple[LinearShape, ...]:
    """Names without the block's prefix, rows and columns, stage by stage."""
    hidden, query, kv, ffn = shape.hidden, shape.query_width, shape.kv_width, shape.ffn
    sizes = ((query, hidden), (kv, hidden), (kv, hidden), (hidden, query), (ffn, hidden), (ffn, hidden), (hidden, ffn))
    names = [name for stage in STAGES for name in stage.matrices]
    return tuple(
        LinearShape(name=name, rows=rows, columns=columns) for name, (rows, columns) in zip(names, sizes, strict=True)
    )


def block_vectors(shape: ModelShape) -> dict[str, int]:
    """Norm weights and biases of a block: name without the prefix -> size."""
    vectors = {"input_layernorm.weight": shape.hidden, "post_attention_layernorm.weight": shape.hidden}
    if shape.qkv_bias:
        vectors |= {"self_attn.q_proj.bias": shape.query_width}
        vectors |= {"self_attn.k_proj.bias": shape.kv_width, "self_attn.v_proj.bias": shape.kv_width}
    if shape.qk_norm:
        vectors |= {"self_attn.q_norm.weight": shape.head_dim, "self_attn.k_norm.weight": shape.head_dim}
    return vectors


def outer_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """What stays as it is: embedding, last norm, and the head where it is not the embedding."""
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocab, shape.hidden),
        "model.norm.weight": (shape.hidden,),
    }
    return tensors if shape.tied_embeddings else {**tensors, "lm_head.weight": (shape.vocab, shape.hidden)}
