"""The engines whose steps are measured: those that `serve` would start here; it starts none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoscaling.planner import patterns
from cluster.accelerators import Accelerator, accelerator_named
from cluster.config import FleetConfig
from cluster.cost_model import CostModel
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError, did_you_mean
from cluster.model_config import model_config
from cluster.model_shape import ModelShape
from cluster.models import on_disk
from cluster.profile import Profile
from engine.checkpoint import ensure_checkpoint, with_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A variant's engine with what was measured of it."""

    spec: EngineSpec
    shape: ModelShape
    profile: Profile

    @property
    def name(self) -> str:
        return self.spec.variant.name

    def model(self, profile: Profile | None) -> CostModel:
        """None: the plain roofline."""
        spec = self.spec
        assert spec.accelerator is not None, "specs_of names it"
        return CostModel(
            self.shape, spec.variant, spec.accelerator, share=spec.share, kv_dtype=spec.kv_dtype, profile=profile
        )


def specs_of(config: FleetConfig, names: Sequence[str], *, made_up: bool) -> tuple[ModelShape, list[EngineSpec]]:
    """One engine of each variant, or of those named. `made_up`: with random weights in the shape of a config.json."""
    for name in names:
        if name not in config.variants:
            raise UserError(f"--variant {name}: not in the configuration; {did_you_mean(name, config.variants)}")
    accelerator = accelerator_named(config.accelerator.name, config.accelerator.price_per_hour)
    checkpoint = _shape_folder(config, accelerator) if made_up else ensure_checkpoint(config.model.source)
    shape = ModelShape.from_hf_config(model_config(str(checkpoint)), config.engine.max_context)
    placement = patterns(config, shape, accelerator, str(checkpoint))
    specs = [allotment.spec for allotment in placement.allotments if not names or allotment.spec.variant.name in names]
    if made_up:
        return shape, [replace(spec, load_format="dummy") for spec in specs]
    return shape, [with_weights(spec, shape) for spec in specs]


def _shape_folder(config: FleetConfig, accelerator: Accelerator) -> Path:
    if accelerator.kind != "gpu":
        raise UserError(f"--dummy: made-up weights are for GPUs, and this is {accelerator.name}; leave it out")
    folder = on_disk(config.model.source)
    if folder is None or not (folder / "config.json").is_file():
        raise UserError(f"model.source {config.model.source!r}: no folder with a config.json; --dummy takes one")
    return folder
