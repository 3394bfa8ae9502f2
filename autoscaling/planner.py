"""allot: how many replicas of which variant, and what each may use of the hardware; it starts and measures none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, inf

from cluster.accelerators import Accelerator, Kind, serving_kinds
from cluster.config import EngineSection, FleetConfig
from cluster.cost_model import CostModel
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.kv_capacity import UTILIZATION, KvCapacity, MemoryPlan, granted_bytes, kv_capacity
from cluster.model_shape import ModelShape
from cluster.prediction import ReplicaLimits
from cluster.profile import StepShape
from cluster.variants import METHODS, Variant

MAX_SEQUENCES: dict[Kind, int] = {"cpu": 64, "gpu": 256}
"""Beyond it a CPU's step is bound by arithmetic many times over, so that more sequences only make each slower."""
TOKEN_BUDGETS = (2048, 1024, 512, 256, 128)
MIXED_STEP_S = 0.25
"""A full step of prompt tokens should take no longer: every decode beside it waits that long for its next token."""
STEP_OF_TPOT: dict[Kind, float] = {"cpu": inf, "gpu": 0.5}
"""And on a GPU no longer than this of the tightest TPOT limit: while prompts queue every step is a full one, and a
measured one takes up to 1.7 times what the roofline says (bf16 on an H100: 48 ms for 1,742 tokens beside 7 decodes, the
roofline 29). On a CPU the decodes alone come near such limits, and the smallest chunks would break them, too."""
PREFILL_ROOM = 64
"""Prompt tokens that a step has room for even beside as many decodes as can run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What one replica may use; equal for all replicas, as Ray isolates neither memory nor time."""

    replicas: int
    """That share the accelerator."""
    threads: int
    memory_share: Fraction
    compute_share: float
    arithmetic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """One replica: its engine, and how its KV capacity came about."""

    spec: EngineSpec
    capacity: KvCapacity


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    accelerator: Accelerator
    slice: Slice
    allotments: tuple[Allotment, ...]

    @property
    def specs(self) -> dict[str, list[EngineSpec]]:
        """By variant."""
        found: dict[str, list[EngineSpec]] = {}
        for allotment in self.allotments:
            found.setdefault(allotment.spec.variant.name, []).append(allotment.spec)
        return found

    @property
    def limits(self) -> ReplicaLimits:
        """The same for all replicas."""
        spec = self.allotments[0].spec
        return ReplicaLimits(
            token_budget=spec.token_budget, max_sequences=spec.max_sequences, max_waiting=spec.max_waiting
        )


def allot(
    config: FleetConfig,
    shape: ModelShape,
    accelerator: Accelerator,
    checkpoint: str,
    *,
    replicas: Mapping[str, int] | None = None,
) -> Placement:
    """The replicas to start with: each variant's minimum, or `replicas` by variant, such as one for a batch job."""
    _check_runs_here(config, accelerator)
    started = dict(replicas) if replicas is not None else {name: config.replicas(name).min for name in config.variants}
    most = sum(started.values()) if replicas is not None else most_replicas(config)
    if not sum(started.values()):
        raise UserError("autoscaling.replicas: every min is 0, so nothing would serve; give one variant a min of 1")
    part = slice_of(config, accelerator, most)
    allotments = [
        allotment(config, shape, accelerator, part, config.variants[name], f"{name}-{index}", checkpoint)
        for name, count in started.items()
        for index in range(count)
    ]
    return Placement(accelerator=accelerator, slice=part, allotments=tuple(allotments))


def patterns(config: FleetConfig, shape: ModelShape, accelerator: Accelerator, checkpoint: str) -> Placement:
    """One replica of each variant, as there may be several or none of while the fleet runs."""
    _check_runs_here(config, accelerator)
    part = slice_of(config, accelerator, most_replicas(config))
    allotments = [
        allotment(config, shape, accelerator, part, variant, f"{name}-0", checkpoint)
        for name, variant in config.variants.items()
    ]
    return Placement(accelerator=accelerator, slice=part, allotments=tuple(allotments))


def most_replicas(config: FleetConfig) -> int:
    return sum(config.replicas(name).max for name in config.variants)


def slice_of(config: FleetConfig, accelerator: Accelerator, replicas: int) -> Slice:
    """On GPUs a whole one each, or an equal part; on a CPU host equal parts of its memory, and at least one core."""
    if accelerator.kind == "gpu":
        return _slice_of_gpu(config, accelerator, replicas)
    cores, wish = accelerator.cores, config.engine.num_threads
    threads = max(1, cores // replicas) if wish == "auto" else wish
    if threads > 1 and threads * replicas > cores:
        raise UserError(
            f"engine.num_threads: {replicas} replicas x {threads} threads = {threads * replicas} on {cores} cores;"
            " more threads than cores wait for each other, so give fewer threads or replicas"
        )
    arithmetic = f"{replicas} replicas on {cores} cores: {threads} thread(s) and 1/{replicas} of the memory each"
    return Slice(
        replicas=replicas,
        threads=threads,
        memory_share=Fraction(1, replicas),
        compute_share=min(1.0, threads / cores),
        arithmetic=arithmetic,
    )


def _slice_of_gpu(config: FleetConfig, accelerator: Accelerator, replicas: int) -> Slice:
    gpus, wish = config.autoscaling.budget.gpus or accelerator.count, config.autoscaling.budget.replicas_per_gpu
    if config.is_autoscaled and gpus:
        # There the budget binds, not the sum of the maxima: that says which variants the GPUs may be given to.
        minima = sum(config.replicas(name).min for name in config.variants)
        replicas = min(replicas, max(minima, gpus if wish == "auto" else gpus * wish))
    each = wish if wish != "auto" else max(1, ceil(replicas / gpus)) if gpus else 1
    if gpus and replicas > gpus * each:
        raise UserError(
            f"autoscaling.budget.replicas_per_gpu: {replicas} replicas, {each} to a GPU, do not fit into {gpus};"
            " give more GPUs (autoscaling.budget.gpus), fewer replicas, or more of them to a GPU"
        )
    arithmetic = f"{replicas} replicas, {each} to a GPU: 1/{each} of its memory each"
    return Slice(
        replicas=replicas,
        threads=1,
        memory_share=Fraction(1, each),
        compute_share=1 / each,
        arithmetic=arithmetic,
    )


def _check_runs_here(config: FleetConfig, accelerator: Accelerator) -> None:
    if accelerator.kind not in serving_kinds():
        raise UserError(
            f"accelerator: {accelerator.name} can be planned for, but the torch that is installed here runs on"
            f" {', '.join(serving_kinds())} only; say accelerator: auto, or install a CUDA build of torch"
        )
    _check_methods(config, accelerator)


def _check_methods(config: FleetConfig, accelerator: Accelerator) -> None:
    for name, variant in config.variants.items():
        if variant.method not in METHODS[accelerator.kind]:
            raise UserError(
                f"variants.{name}.method: {variant.method} does not run on {accelerator.name};"
                f" there are {', '.join(METHODS[accelerator.kind])}"
            )


def allotment(
    config: FleetConfig,
    shape: ModelShape,
    accelerator: Accelerator,
    part: Slice,
    variant: Variant,
    replica_id: str,
    checkpoint: str,
) -> Allotment:
    engine = config.engine
    plan = memory_plan(config, shape, accelerator, part)
    capacity = kv_capacity(shape, variant, accelerator, plan)
    measures = accelerator.kind == "gpu" and plan.fixed_tokens is None
    spec = EngineSpec(
        replica_id=replica_id,
        checkpoint=checkpoint,
        variant=variant,
        kv_capacity_tokens=capacity.tokens,
        block_size=plan.block_size,
        kv_dtype=plan.kv_dtype,
        max_context=plan.max_context,
        token_budget=plan.token_budget,
        max_sequences=plan.max_sequences,
        max_waiting=engine.max_waiting,
        num_threads=part.threads,
        device="cpu" if accelerator.kind == "cpu" else "cuda",
        prefix_caching=engine.prefix_caching,
        memory_bytes=granted_bytes(accelerator, plan) if measures else None,
        accelerator=accelerator,
        share=part.compute_share,
    )
    return Allotment(spec=spec, capacity=capacity)


def memory_plan(config: FleetConfig, shape: ModelShape, accelerator: Accelerator, part: Slice) -> MemoryPlan:
    engine = config.engine
    fixed = engine.kv_capacity_tokens
    utilization = engine.memory_utilization
    return MemoryPlan(
        utilization=UTILIZATION[accelerator.kind] if utilization == "auto" else utilization,
        share=part.memory_share,
        block_size=engine.block_size,
        kv_dtype="bf16" if engine.kv_dtype == "auto" else engine.kv_dtype,
        max_context=max_context(engine, shape),
        token_budget=token_budget(config, shape, accelerator, part),
        max_sequences=max_sequences(engine, accelerator),
        fixed_tokens=None if fixed == "auto" else fixed,
    )


def max_context(engine: EngineSection, shape: ModelShape) -> int:
    """The default is cut to the model's own limit; a figure in the file that is beyond it is a mistake."""
    if engine.max_context > shape.max_positions and "max_context" in engine.model_fields_set:
        raise UserError(
            f"engine.max_context: {engine.max_context} is beyond the {shape.max_positions} positions of {shape.name};"
            f" give at most {shape.max_positions}"
        )
    return min(engine.max_context, shape.max_positions)


def max_sequences(engine: EngineSection, accelerator: Accelerator) -> int:
    return MAX_SEQUENCES[accelerator.kind] if engine.max_sequences == "auto" else engine.max_sequences


def token_budget(config: FleetConfig, shape: ModelShape, accelerator: Accelerator, part: Slice) -> int:
    """The most prompt tokens whose step of the slowest variant stays short, by the roofline: it needs no profile."""
    engine = config.engine
    sequences = max_sequences(engine, accelerator)
    least = sequences + PREFILL_ROOM
    if engine.token_budget != "auto":
        if engine.token_budget <= sequences:
            raise UserError(
                f"engine.token_budget: {engine.token_budget} leaves no room for prompts beside"
                f" {sequences} decodes (engine.max_sequences); give at least {least}"
            )
        return engine.token_budget
    models = [CostModel(shape, variant, accelerator, share=part.compute_share) for variant in config.variants.values()]
    tightest_s = min((limits.tpot_ms or inf for limits in config.slo_classes.values()), default=inf) / 1e3
    longest_s = min(MIXED_STEP_S, STEP_OF_TPOT[accelerator.kind] * tightest_s)
    for budget in TOKEN_BUDGETS:
        prompt = StepShape(decode_sequences=0, kv_tokens=0, prefill_tokens=budget)
        if max(model.step_s(prompt) for model in models) <= longest_s:
            return max(budget, least)
    return least
