"""What a simulated fleet is made of: fleet.yaml, hardware and profiles -> FleetDescription; it simulates none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from autoscaling.fleet_description import FleetDescription, VariantTerms
from autoscaling.fleet_plan import VariantBounds
from autoscaling.planner import memory_plan, slice_of
from autoscaling.policy_settings import policy_settings
from cluster.accelerators import Accelerator, accelerator_named
from cluster.config import FleetConfig
from cluster.errors import UserError, did_you_mean
from cluster.kv_capacity import kv_capacity
from cluster.model_config import shape_of
from cluster.model_shape import ModelShape
from cluster.prediction import ReplicaLimits
from cluster.profile import Profile, newest_of, read_profiles
from cluster.variants import METHODS, Variant

MOST_REPLICAS = {"gpu": 64, "cpu": 1}
"""Of a variant whose bounds the file does not give: GPUs to find out how many; the replicas of a CPU host share it."""
START_S = {"gpu": 20.0, "cpu": 5.0}
"""Process, imports, warm-up and CUDA graphs, before and after the weights."""
LOAD_BYTES_PER_S = 1e9
"""Of weights, from disk to the device."""


def described(
    config: FleetConfig,
    accelerator: str | None,
    *,
    only: Mapping[str, int] | None,
    profiles: Path | None,
    cold_start_s: Mapping[str, float],
    step_time_ratio: Mapping[str, float] | None = None,
) -> FleetDescription:
    """`only`: these variants, with so many replicas at least allowed; UserError for what cannot be. Cold starts of the
    file or `cold_start_s` hold; those of neither are guessed from the bytes of weights. `step_time_ratio`: of variants,
    what their steps take in a running fleet over what their profiles say."""
    hardware = _hardware(config, accelerator)
    shape = shape_of(config.model.source, config.engine.max_context)
    variants = _variants(config, hardware, only)
    bounds = {name: _bounds(config, name, hardware, only) for name in variants}
    budget = _budget_replicas(config, bounds)
    part = slice_of(config, hardware, budget)
    memory = memory_plan(config, shape, hardware, part)
    limits = ReplicaLimits(
        token_budget=memory.token_budget, max_sequences=memory.max_sequences, max_waiting=config.engine.max_waiting
    )
    return FleetDescription(
        model=config.model.name,
        shape=shape,
        accelerator=hardware,
        variants={
            name: VariantTerms(
                variant=variant,
                share=part.compute_share,
                kv_dtype=memory.kv_dtype,
                kv_capacity_tokens=kv_capacity(shape, variant, hardware, memory).tokens,
                block_size=memory.block_size,
                limits=limits,
                cold_start_s=cold_start_s.get(name, _cold_start_s(config, shape, variant, hardware)),
                bounds=bounds[name],
                profile=_profile(profiles, name, hardware, (step_time_ratio or {}).get(name, 1.0)),
            )
            for name, variant in variants.items()
        },
        classes=config.online_classes,
        budget_replicas=budget,
        settings=policy_settings(config.autoscaling),
    )


def parse_replicas(text: str, config: FleetConfig) -> dict[str, int]:
    """`bf16=4,int4=2`; UserError for an unknown variant or a count that is none."""
    counts: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in config.variants:
            raise UserError(f"--replicas: no variant {name!r}; {did_you_mean(name, config.variants)}")
        if not value.isdigit():
            raise UserError(f"--replicas: {part!r} is no number of replicas; write {name}=2")
        counts[name] = int(value)
    if not sum(counts.values()):
        raise UserError(f"--replicas: {text!r} starts none; give one variant at least one replica")
    return counts


def parse_ratios(text: str, config: FleetConfig) -> dict[str, float]:
    """`bf16=1.2,int4=1.3`; UserError for an unknown variant or what is no ratio."""
    ratios: dict[str, float] = {}
    for part, name, ratio in _numbers(text, config, "--step-time-ratio", "ratio", "1.2"):
        if not 0.01 <= ratio <= 100:
            raise UserError(f"--step-time-ratio: {part!r} is not between 0.01 and 100; write {name}=1.2")
        ratios[name] = ratio
    return ratios


def parse_seconds(text: str, config: FleetConfig) -> dict[str, float]:
    """`bf16=40,int4=25`; UserError for an unknown variant or what is no time."""
    seconds: dict[str, float] = {}
    for part, name, time_s in _numbers(text, config, "--cold-start", "time", "40 for 40 s"):
        if not 0 <= time_s < float("inf"):
            raise UserError(f"--cold-start: {part!r} is not a time of 0 s or more; write {name}=40")
        seconds[name] = time_s
    return seconds


def _numbers(text: str, config: FleetConfig, option: str, kind: str, example: str) -> Iterator[tuple[str, str, float]]:
    """Each part of `NAME=NUMBER,...`, its variant and its number."""
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in config.variants:
            raise UserError(f"{option}: no variant {name!r}; {did_you_mean(name, config.variants)}")
        try:
            yield part, name, float(value)
        except ValueError:
            raise UserError(f"{option}: {part!r} is no {kind}; write {name}={example}") from None


def _hardware(config: FleetConfig, name: str | None) -> Accelerator:
    """The file's price is for the file's hardware."""
    section = config.accelerator
    if name is None or name == section.name:
        return accelerator_named(section.name, section.price_per_hour)
    return accelerator_named(name)


def _variants(config: FleetConfig, hardware: Accelerator, only: Mapping[str, int] | None) -> dict[str, Variant]:
    variants = {name: variant for name, variant in config.variants.items() if only is None or name in only}
    for name, variant in variants.items():
        if variant.method not in METHODS[hardware.kind]:
            raise UserError(
                f"variants.{name}.method: {variant.method} does not run on {hardware.name};"
                f" there are {', '.join(METHODS[hardware.kind])}; leave the variant out with --replicas"
            )
    return variants


def _bounds(config: FleetConfig, name: str, hardware: Accelerator, only: Mapping[str, int] | None) -> VariantBounds:
    given = config.autoscaling.replicas.get(name)
    wanted = only[name] if only is not None else 0
    if given is None:
        return VariantBounds(min=0, max=max(MOST_REPLICAS[hardware.kind], wanted))
    if wanted > given.max:
        raise UserError(
            f"--replicas: {name}={wanted} is above autoscaling.replicas.{name}.max {given.max}; raise it in the file"
        )
    return VariantBounds(min=given.min, max=given.max)


def _budget_replicas(config: FleetConfig, bounds: Mapping[str, VariantBounds]) -> int:
    """GPUs times equal shares of one; without a budget as many as the bounds allow."""
    most = sum(each.max for each in bounds.values())
    budget = config.autoscaling.budget
    if budget.gpus is None:
        return most
    each = 1 if budget.replicas_per_gpu == "auto" else budget.replicas_per_gpu
    least = sum(bound.min for bound in bounds.values())
    if least > budget.gpus * each:
        raise UserError(
            f"autoscaling.budget.gpus: {budget.gpus} GPUs with {each} replicas each are too few for the minima of"
            f" {', '.join(bounds)}, {least} replicas; raise the budget or lower a min"
        )
    return min(most, budget.gpus * each)


def _cold_start_s(config: FleetConfig, shape: ModelShape, variant: Variant, hardware: Accelerator) -> float:
    if config.autoscaling.cold_start_s != "auto":
        return config.autoscaling.cold_start_s
    return START_S[hardware.kind] + variant.resident_bytes(shape, hardware.kind) / LOAD_BYTES_PER_S


def _profile(path: Path | None, variant: str, hardware: Accelerator, ratio: float) -> Profile | None:
    """The newest of this variant on this hardware, its times multiplied by `ratio`."""
    if path is None:
        if ratio != 1:
            raise UserError(f"--step-time-ratio: {variant}={ratio:g} is over a profile; give --profiles, too")
        return None
    profile = newest_of(read_profiles(path), variant, hardware.name)
    if profile is None:
        raise UserError(
            f"--profiles: {path} has no profile of {variant} on {hardware.name}; measure one or leave the variant out"
        )
    return profile if ratio == 1 else profile.times(ratio)
