"""EngineSpec: all that one engine needs to start, in plain values; it starts nothing and reads no file."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Literal

from cluster.accelerators import Accelerator
from cluster.variants import Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One replica's engine, as the planner allots it; it crosses the process boundary as msgpack."""

    replica_id: str
    checkpoint: str
    """The model's folder: config.json, the safetensors, the tokenizer."""
    variant: Variant
    kv_capacity_tokens: int
    """Exactly what the engine allocates: a multiple of block_size."""
    block_size: int = 16
    kv_dtype: Literal["bf16", "fp32"] = "bf16"
    max_context: int
    token_budget: int = 512
    """Tokens computed in one step, decodes and prefill chunks together."""
    max_sequences: int = 64
    """Sequences running at once; the others wait."""
    max_waiting: int = 256
    """Requests admitted beyond the running ones; past it the answer is a refusal."""
    background_step_s: float | None = None
    """The longest a step may be predicted to take with background work in it: a request that comes waits for it."""
    num_threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    prefix_caching: bool = True
    accelerator: Accelerator | None = None
    """With it the engine predicts its own steps and reports measured / predicted; without, the ratio stays 1."""
    share: float = 1.0
    """Of the accelerator's arithmetic and bandwidth."""
    load_format: Literal["safetensors", "dummy"] = "safetensors"
    """dummy: seeded random weights in the shape of the folder's config.json, for timing; on a GPU only."""
    memory_bytes: int | None = None
    """Of the GPU's memory, what this replica may take in all. With it the engine measures its own terms at the start
    and kv_capacity_tokens becomes what they leave, at most the figure given; without, that figure holds."""
    profile_path: str | None = None
    """A measured Profile of this variant on this share, for those predictions."""

    @property
    def weights(self) -> str:
        """The folder that the weights are read from."""
        return self.variant.source or self.checkpoint

    @property
    def num_gpus(self) -> float:
        """What Ray is asked for; it counts ten-thousandths, and three thirds must fit."""
        return floor(self.share * 10_000) / 10_000 if self.device == "cuda" else 0.0

    def __post_init__(self) -> None:
        if self.kv_capacity_tokens % self.block_size:
            raise ValueError(f"kv_capacity_tokens {self.kv_capacity_tokens} is not a multiple of {self.block_size}")
