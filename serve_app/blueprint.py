"""Blueprint: all that a fleet is built from, worked out from its configuration before Ray starts; it starts nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from autoscaling.planner import allot
from cluster.accelerators import Accelerator, accelerator_named
from cluster.config import FleetConfig
from cluster.cost_model import CostModel
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.model_shape import ModelShape
from cluster.prediction import ReplicaLimits
from cluster.profile import Profile
from engine.checkpoint import ensure_checkpoint
from engine.profiling import ensure_profile


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantPlan:
    """A variant's deployment: its replicas are alike."""

    spec: EngineSpec
    num_replicas: int
    profile: Profile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    config: FleetConfig
    checkpoint: str
    shape: ModelShape
    accelerator: Accelerator
    limits: ReplicaLimits
    variants: dict[str, VariantPlan]

    @classmethod
    def of(cls, config: FleetConfig) -> Blueprint:
        """UserError where the configuration cannot be served on this machine."""
        if config.auth.keys_file and not Path(config.auth.keys_file).is_file():
            raise UserError(
                f"auth.keys_file: {config.auth.keys_file} does not exist; "
                f"make it with `quantfleet keys create --file {config.auth.keys_file}`"
            )
        checkpoint = ensure_checkpoint(config.model.source)
        shape = ModelShape.from_hf_config(checkpoint / "config.json", config.engine.max_context)
        accelerator = accelerator_named(config.accelerator.name, config.accelerator.price_per_hour)
        placement = allot(config, shape, accelerator, str(checkpoint))
        return cls(
            config=config,
            checkpoint=str(checkpoint),
            shape=shape,
            accelerator=accelerator,
            limits=placement.limits,
            variants={
                name: VariantPlan(spec=specs[0], num_replicas=len(specs)) for name, specs in placement.specs.items()
            },
        )

    @property
    def context_tokens(self) -> int:
        """What every replica can hold of one request."""
        return min(min(plan.spec.max_context, plan.spec.kv_capacity_tokens) for plan in self.variants.values())

    def measured(self, variant: str) -> Blueprint:
        """With the variant's speed profile, which takes some seconds where this machine has none yet."""
        plan = self.variants[variant]
        path = ensure_profile(plan.spec)
        profile = Profile.from_json(path.read_text())
        plan = replace(plan, profile=profile, spec=replace(plan.spec, profile_path=str(path)))
        return replace(self, variants=self.variants | {variant: plan})

    def cost_models(self) -> dict[str, CostModel]:
        return {
            name: CostModel(
                self.shape,
                plan.spec.variant,
                self.accelerator,
                share=plan.spec.share,
                kv_dtype=plan.spec.kv_dtype,
                profile=plan.profile,
            )
            for name, plan in self.variants.items()
        }
