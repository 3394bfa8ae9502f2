"""All that a fleet's decisions rest on, as plain values that go to JSON and back; it decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from autoscaling.fleet_plan import FleetTerms, VariantBounds
from autoscaling.kv_aware import KvAwarePolicy, KvAwareSettings
from autoscaling.sustained import ReplicaCapability
from cluster.accelerators import Accelerator
from cluster.cost_model import CostModel
from cluster.model_shape import ModelShape
from cluster.prediction import ReplicaLimits
from cluster.profile import Profile
from cluster.slo import SloLimits
from cluster.variants import Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantTerms:
    """One replica of a variant, and how many there may be."""

    variant: Variant
    share: float
    """Of the accelerator's time."""
    kv_dtype: Literal["bf16", "fp32"]
    kv_capacity_tokens: int
    block_size: int
    limits: ReplicaLimits
    cold_start_s: float
    bounds: VariantBounds
    profile: Profile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetDescription:
    model: str
    shape: ModelShape
    accelerator: Accelerator
    variants: Mapping[str, VariantTerms]
    classes: Mapping[str, SloLimits]
    budget_replicas: int
    settings: KvAwareSettings

    def cost_models(self) -> dict[str, CostModel]:
        return {
            name: CostModel(
                self.shape,
                each.variant,
                self.accelerator,
                share=each.share,
                kv_dtype=each.kv_dtype,
                profile=each.profile,
            )
            for name, each in self.variants.items()
        }

    def terms(self) -> FleetTerms:
        models = self.cost_models()
        return FleetTerms(
            replicas={
                name: ReplicaCapability(
                    model=models[name],
                    kv_capacity_tokens=each.kv_capacity_tokens,
                    block_size=each.block_size,
                    limits=each.limits,
                    cold_start_s=each.cold_start_s,
                )
                for name, each in self.variants.items()
            },
            bounds={name: each.bounds for name, each in self.variants.items()},
            classes=self.classes,
            budget_replicas=self.budget_replicas,
        )

    def policy(self) -> KvAwarePolicy:
        """A new one, that has seen nothing."""
        return KvAwarePolicy(self.terms(), self.settings)
