"""What the decoder computes, read from config.json into plain values: shape, norms, rope; it holds no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.model_shape import ModelShape, read_config, rope_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """`rope` holds rope_type, rope_theta and what that type needs, as transformers names it."""

    shape: ModelShape
    rms_norm_eps: float
    rope: Mapping[str, Any]
    eos_token_ids: frozenset[int]

    @classmethod
    def read(cls, folder: Path, max_context: int) -> DecoderConfig:
        config = read_config(folder)
        shape = ModelShape.from_hf_config(config, max_context)
        if max_context > shape.max_positions:
            raise UserError(
                f"engine.max_context {max_context}: {shape.name} has positions for {shape.max_positions} tokens"
            )
        return cls(
            shape=shape,
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope=rope_parameters(config),
            eos_token_ids=_eos_token_ids(folder, config),
        )


def _eos_token_ids(folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """generation_config.json goes before config.json, as in transformers' generate."""
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ids = generation.get("eos_token_id", config.get("eos_token_id"))
    return frozenset([ids] if isinstance(ids, int) else ids or [])
