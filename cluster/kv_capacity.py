"""How many KV tokens a replica may hold, by the memory formula with every term named; it allocates nothing.

kv_capacity_tokens = floor((memory x utilization x share - context - resident_weights - activation_peak
                            - workspace - graphs) / (block x kv_bytes_per_token)) x block
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from cluster.accelerators import Accelerator, Kind
from cluster.errors import UserError
from cluster.model_shape import ModelShape
from cluster.variants import DTYPE_BYTES, Variant

MIB = 2**20

CONTEXT_BYTES: dict[Kind, int] = {"cpu": 384 * MIB, "gpu": 640 * MIB}
"""Before any weight. CPU: an engine process with torch and numba, 310 MB measured, and the compiled kernels. GPU: the
CUDA context and torch's loaded kernels, about 0.6 GB by nvidia-smi."""
WORKSPACE_BYTES: dict[Kind, int] = {"cpu": 0, "gpu": 64 * MIB}
"""GPU: cuBLAS keeps 32 MiB on Hopper, and split attention its partial sums."""
GRAPHS_BYTES: dict[Kind, int] = {"cpu": 0, "gpu": 512 * MIB}
"""GPU: captured decode steps, one a batch size."""
UTILIZATION: dict[Kind, float] = {"cpu": 0.5, "gpu": 0.9}
"""On a CPU host Ray's object store takes 30 % of the memory, and its workers and the ingress live there too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What of fleet.yaml bears on a replica's memory."""

    utilization: float
    share: Fraction
    block_size: int
    kv_dtype: Literal["bf16", "fp32"]
    max_context: int
    token_budget: int
    max_sequences: int
    fixed_tokens: int | None = None
    """engine.kv_capacity_tokens where it is a number: checked against the formula, not replaced by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    name: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCapacity:
    """`tokens` is what the engine allocates, to the block; the terms add up to the bytes left for it."""

    tokens: int
    blocks: int
    block_size: int
    bytes_per_token: int
    terms: tuple[Term, ...]
    """The memory granted, then what goes off it, negative."""
    capped_by: str | None
    """What held it below the formula's figure, if anything."""

    @property
    def available_bytes(self) -> int:
        return sum(term.bytes for term in self.terms)

    @property
    def kv_bytes(self) -> int:
        return self.tokens * self.bytes_per_token

    def arithmetic(self) -> str:
        first, *others = self.terms
        terms = f"{first.name} {gigabytes(first.bytes)}" + "".join(
            f" - {term.name} {gigabytes(-term.bytes)}" for term in others
        )
        formula_tokens = max(0, self.available_bytes) // (self.block_size * self.bytes_per_token) * self.block_size
        cap = f", but {self.capped_by}: {self.tokens}" if self.capped_by else ""
        return (
            f"({terms} = {gigabytes(self.available_bytes)}) / ({self.block_size} x {self.bytes_per_token} B) "
            f"-> {formula_tokens // self.block_size} blocks = {formula_tokens} tokens{cap}"
        )


def kv_capacity(shape: ModelShape, variant: Variant, accelerator: Accelerator, plan: MemoryPlan) -> KvCapacity:
    bytes_per_token = shape.kv_bytes_per_token(DTYPE_BYTES[plan.kv_dtype])
    terms = _terms(shape, variant, accelerator, plan)
    available = sum(term.bytes for term in terms)
    formula_blocks = max(0, available) // (plan.block_size * bytes_per_token)
    blocks, capped_by = _capped(formula_blocks, plan)
    capacity = KvCapacity(
        tokens=blocks * plan.block_size,
        blocks=blocks,
        block_size=plan.block_size,
        bytes_per_token=bytes_per_token,
        terms=terms,
        capped_by=capped_by,
    )
    _check(capacity, formula_blocks, variant, plan)
    return capacity


def granted_bytes(accelerator: Accelerator, plan: MemoryPlan) -> int:
    return int(accelerator.memory_bytes * Fraction(str(plan.utilization)) * plan.share)


def measured_capacity(*, block_size: int, bytes_per_token: int, terms: tuple[Term, ...]) -> KvCapacity:
    """The same formula over terms that an engine measured of itself at its start; it may come to no block at all."""
    blocks = max(0, sum(term.bytes for term in terms)) // (block_size * bytes_per_token)
    return KvCapacity(
        tokens=blocks * block_size,
        blocks=blocks,
        block_size=block_size,
        bytes_per_token=bytes_per_token,
        terms=terms,
        capped_by=None,
    )


def activation_bytes(shape: ModelShape, plan: MemoryPlan) -> int:
    """Peak of a step in fp32: the widest block (residual twice, qkv, attention, gate, up, their product) for the token
    budget, and logits with their sorted copy and probabilities for every sequence that samples."""
    widest = 2 * shape.hidden + 2 * shape.query_width + 2 * shape.kv_width + 3 * shape.ffn
    return 4 * (plan.token_budget * widest + 3 * plan.max_sequences * shape.vocab)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.3f} GB"


def _terms(shape: ModelShape, variant: Variant, accelerator: Accelerator, plan: MemoryPlan) -> tuple[Term, ...]:
    granted = granted_bytes(accelerator, plan)
    memory = f"memory {gigabytes(accelerator.memory_bytes)} x utilization {plan.utilization:g} x share {plan.share} ="
    return (
        Term(name=memory, bytes=granted),
        Term(name="context", bytes=-CONTEXT_BYTES[accelerator.kind]),
        Term(name="weights", bytes=-variant.resident_bytes(shape, accelerator.kind)),
        Term(name="activations", bytes=-activation_bytes(shape, plan)),
        Term(name="workspace", bytes=-WORKSPACE_BYTES[accelerator.kind]),
        Term(name="graphs", bytes=-GRAPHS_BYTES[accelerator.kind]),
    )


def _capped(formula_blocks: int, plan: MemoryPlan) -> tuple[int, str | None]:
    """More than every sequence at its longest is never used."""
    if plan.fixed_tokens is not None:
        return plan.fixed_tokens // plan.block_size, f"engine.kv_capacity_tokens is {plan.fixed_tokens}"
    most = plan.max_sequences * -(-plan.max_context // plan.block_size)
    if formula_blocks > most:
        return most, f"{plan.max_sequences} sequences of {plan.max_context} need no more"
    return formula_blocks, None


def _check(capacity: KvCapacity, formula_blocks: int, variant: Variant, plan: MemoryPlan) -> None:
    if capacity.blocks > formula_blocks:
        raise UserError(
            f"engine.kv_capacity_tokens: {plan.fixed_tokens} do not fit for {variant.name}: {capacity.arithmetic()}; "
            "give fewer, raise engine.memory_utilization or run fewer replicas"
        )
    if capacity.tokens < plan.max_context:
        raise UserError(
            f"engine.max_context: one sequence of {plan.max_context} tokens does not fit for {variant.name}: "
            f"{capacity.arithmetic()}; lower max_context or token_budget, or run fewer replicas"
        )
