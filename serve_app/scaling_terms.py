"""What the scaling policy is made from, out of a blueprint and fleet.yaml, as plain values; it decides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from autoscaling.fleet_description import FleetDescription, VariantTerms
from autoscaling.fleet_plan import VariantBounds
from autoscaling.policy_settings import policy_settings
from cluster.engine_spec import EngineSpec
from cluster.models import cache_dir
from engine.profiling import profile_path
from serve_app.blueprint import Blueprint, VariantPlan
from serve_app.cold_starts import cold_start_s

POLICY = "serve_app.serving_policy:ServingPolicy"


def fleet_description(blueprint: Blueprint) -> FleetDescription:
    config = blueprint.config
    return FleetDescription(
        model=config.model.name,
        shape=blueprint.shape,
        accelerator=blueprint.accelerator,
        variants={name: _terms(blueprint, name, plan) for name, plan in blueprint.variants.items()},
        classes=config.online_classes,
        budget_replicas=blueprint.budget_replicas,
        settings=policy_settings(config.autoscaling),
    )


def decision_log_path(blueprint: Blueprint) -> Path | None:
    """Absolute: Serve's controller, which writes it, works in a folder of its own."""
    section, http = blueprint.config.autoscaling, blueprint.config.http
    if section.log == "auto":
        return cache_dir() / "decisions" / f"{blueprint.config.model.name}-{http.port}.jsonl"
    return Path(section.log).expanduser().resolve() if section.log is not None else None


def cold_start_path(spec: EngineSpec) -> Path:
    """It holds for what the profile holds for: model, variant, accelerator, threads and versions."""
    return cache_dir() / "cold_starts" / profile_path(spec).name


def serve_policy(blueprint: Blueprint, log_path: Path | None) -> dict[str, Any]:
    """`autoscaling_policy` of Serve's application, all of it JSON."""
    kwargs = {
        "fleet": msgspec.to_builtins(fleet_description(blueprint)),
        "log_path": str(log_path) if log_path is not None else None,
        "dry_run": blueprint.config.autoscaling.dry_run,
        "cold_start_paths": {name: str(cold_start_path(plan.spec)) for name, plan in blueprint.variants.items()},
    }
    return {"policy_function": POLICY, "policy_kwargs": kwargs}


def _terms(blueprint: Blueprint, name: str, plan: VariantPlan) -> VariantTerms:
    spec, config = plan.spec, blueprint.config
    given_s = config.autoscaling.cold_start_s
    bounds = config.replicas(name)
    return VariantTerms(
        variant=spec.variant,
        share=spec.share,
        kv_dtype=spec.kv_dtype,
        kv_capacity_tokens=spec.kv_capacity_tokens,
        block_size=spec.block_size,
        limits=blueprint.limits,
        cold_start_s=cold_start_s(cold_start_path(spec)) if given_s == "auto" else given_s,
        bounds=VariantBounds(min=bounds.min, max=bounds.max),
        profile=plan.profile,
    )
