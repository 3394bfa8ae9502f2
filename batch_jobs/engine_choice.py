"""The engine of a job: a variant with this host's accelerator to itself, or what a fleet leaves; it starts none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from autoscaling.planner import PREFILL_ROOM, allot
from batch_jobs.fingerprint import files_digest
from batch_jobs.fleet_share import FleetShare
from cluster.accelerators import accelerator_named
from cluster.config import FleetConfig
from cluster.cost_model import CostModel
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError, did_you_mean
from cluster.model_shape import ModelShape
from cluster.profile import Profile
from cluster.variants import Variant
from engine.checkpoint import ensure_checkpoint, with_weights
from engine.profiling import profile_key, profile_path


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    spec: EngineSpec
    cost_model: CostModel
    share: FleetShare | None = None
    """Of the fleet that runs the rows, where it is not an engine of the job's own."""

    @property
    def price_per_s(self) -> float:
        """What is idle in a fleet is paid for already."""
        return self.cost_model.price_per_s if self.share is None else 0.0

    def spec_for_batch(self, batch: int, longest_tokens: int) -> EngineSpec:
        """For `batch` sequences of at most about that length at once.

        The cache is no larger than they need: every block is used before the first is used again, so one as large as
        the formula allows would fill the host's memory for nothing.
        """
        spec = self.spec
        if self.share is not None:  # whose engines are what they are
            return replace(spec, max_sequences=batch)
        blocks = batch * -(-longest_tokens // spec.block_size)
        wanted = max(blocks, -(-spec.max_context // spec.block_size)) * spec.block_size
        return replace(
            spec,
            max_sequences=batch,
            token_budget=max(spec.token_budget, batch + PREFILL_ROOM),
            kv_capacity_tokens=min(spec.kv_capacity_tokens, wanted),
        )


def choose_engine(config: FleetConfig, variant_name: str | None) -> EngineChoice:
    variant = known_variant(config, variant_name)
    accelerator = accelerator_named(config.accelerator.name, config.accelerator.price_per_hour)
    checkpoint = ensure_checkpoint(config.model.source)
    shape = ModelShape.from_hf_config(Path(checkpoint) / "config.json", config.engine.max_context)
    (placed,) = allot(config, shape, accelerator, str(checkpoint), replicas={variant.name: 1}).allotments
    spec = with_weights(placed.spec, shape)
    # A profile that is there corrects the roofline; measuring one takes longer than most jobs would gain by it.
    profile = Profile.load(profile_path(spec), profile_key(spec))
    cost_model = CostModel(shape, variant, accelerator, share=spec.share, kv_dtype=spec.kv_dtype, profile=profile)
    return EngineChoice(spec=spec, cost_model=cost_model)


def shared_engine(config: FleetConfig, share: FleetShare) -> EngineChoice:
    """The fleet's engine with the model's files of this host, which its tokenizer is read from: the same files."""
    spec, url = share.served.spec, share.address.url
    if not share.model.startswith(f"{config.model.name}:"):
        raise UserError(f"{url}: serves {share.model}, not {config.model.name}; give its configuration with --config")
    checkpoint = ensure_checkpoint(config.model.source)
    spec = replace(spec, checkpoint=str(checkpoint))
    if files_digest(checkpoint) != share.served.settings["model"]["checkpoint"]:
        raise UserError(f"{url}: the model's files there are not those in {checkpoint}; give the fleet's configuration")
    assert spec.accelerator is not None, "a serving engine knows what it runs on"
    shape = ModelShape.from_hf_config(Path(checkpoint) / "config.json", config.engine.max_context)
    profile = Profile.load(profile_path(spec), profile_key(spec))
    cost_model = CostModel(
        shape, spec.variant, spec.accelerator, share=spec.share, kv_dtype=spec.kv_dtype, profile=profile
    )
    return EngineChoice(spec=spec, cost_model=cost_model, share=share)


def known_variant(config: FleetConfig, name: str | None) -> Variant:
    """The first of the configuration where none is named."""
    variants = config.variants
    if name is None:
        return next(iter(variants.values()))
    if name not in variants:
        raise UserError(f"variant {name!r}: not in the configuration; {did_you_mean(name, variants)}")
    return variants[name]
