"""Blueprint: all that a fleet is built from, worked out from its configuration before Ray starts; it starts nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from autoscaling.planner import allot, patterns
from batch_jobs.engine_identity import ServedVariant, served_variant
from cluster.accelerators import Accelerator, accelerator_named
from cluster.config import FleetConfig
from cluster.cost_model import CostModel, StepShape
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.model_shape import ModelShape
from cluster.prediction import ReplicaLimits
from cluster.profile import Profile
from cluster.slo import background_step_s
from engine.checkpoint import ensure_checkpoint, with_weights
from engine.profiling import ensure_profile, profile_key, profile_path
from serve_app.batches.shelf import Shelves


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantPlan:
    """A variant's deployment: its replicas are alike."""

    spec: EngineSpec
    num_replicas: int
    """To start with."""
    profile: Profile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    config: FleetConfig
    checkpoint: str
    shape: ModelShape
    accelerator: Accelerator
    limits: ReplicaLimits
    budget_replicas: int
    """Of all variants together, at once."""
    variants: dict[str, VariantPlan]

    @classmethod
    def of(cls, config: FleetConfig) -> Blueprint:
        """UserError where the configuration cannot be served on this machine."""
        if config.auth.keys_file and not Path(config.auth.keys_file).is_file():
            raise UserError(
                f"auth.keys_file: {config.auth.keys_file} does not exist; "
                f"make it with `quantfleet keys create --file {config.auth.keys_file}`"
            )
        Shelves.of(config)  # before anything is started for nothing
        checkpoint = ensure_checkpoint(config.model.source)
        shape = ModelShape.from_hf_config(checkpoint / "config.json", config.engine.max_context)
        accelerator = accelerator_named(config.accelerator.name, config.accelerator.price_per_hour)
        plan = patterns if config.is_autoscaled else allot
        placement = plan(config, shape, accelerator, str(checkpoint))
        step_s = background_step_s(config.online_classes.values())
        specs = {
            name: replace(with_weights(specs[0], shape), background_step_s=step_s)
            for name, specs in placement.specs.items()
        }
        return cls(
            config=config,
            checkpoint=str(checkpoint),
            shape=shape,
            accelerator=accelerator,
            limits=placement.limits,
            budget_replicas=placement.slice.replicas,
            variants={
                name: VariantPlan(spec=spec, num_replicas=config.replicas(name).min) for name, spec in specs.items()
            },
        )

    @classmethod
    def from_json(cls, text: str) -> Blueprint:
        return msgspec.json.decode(text, type=cls, dec_hook=_config_from_json)

    def to_json(self) -> str:
        """For another process of the same fleet, which then works nothing out again."""
        return msgspec.json.encode(self, enc_hook=_config_to_json).decode()

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

    def with_known_profiles(self) -> Blueprint:
        """Those that are on disk; nothing is measured."""
        plans = {
            name: replace(plan, profile=Profile.load(profile_path(plan.spec), profile_key(plan.spec)))
            for name, plan in self.variants.items()
        }
        return replace(self, variants=plans)

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

    def served_variants(self) -> dict[str, ServedVariant]:
        """What a job on the fleet must know of each."""
        name, context_tokens = self.config.model.name, self.context_tokens
        return {variant: served_variant(name, plan.spec, context_tokens) for variant, plan in self.variants.items()}

    def longest_stream_s(self, variant: str) -> float:
        """The most that an answer may take: a whole context of tokens, each in a full step of the fullest batch."""
        spec = self.variants[variant].spec
        tokens = min(spec.max_context, spec.kv_capacity_tokens)
        full = StepShape(
            decode_sequences=spec.max_sequences,
            kv_tokens=spec.kv_capacity_tokens,
            prefill_tokens=spec.token_budget - spec.max_sequences,
        )
        return tokens * self.cost_models()[variant].step_s(full)


def _config_to_json(value: Any) -> Any:
    if isinstance(value, FleetConfig):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    raise NotImplementedError(f"{type(value).__name__} is no plain value")


def _config_from_json(kind: type, value: Any) -> Any:
    if kind is FleetConfig:
        return FleetConfig.of(value)
    raise NotImplementedError(f"{kind.__name__} is no plain value")
