"""The engines that a job may take, the one that it asks for first: its own or a fleet's; it chooses none of them."""

from __future__ import annotations

from batch_jobs.engine_choice import EngineChoice, choose_engine, shared_engine
from batch_jobs.fleet_share import FleetAddress, told_by
from batch_jobs.variant_choice import AUTO
from cluster.config import FleetConfig


def engines_of(config: FleetConfig, variant: str | None, share_fleet: str | None) -> list[EngineChoice]:
    """One, or of every variant where that is open (AUTO); `share_fleet`: a fleet's address. UserError where none is."""
    if share_fleet is None:
        names = list(config.variants) if variant == AUTO else [variant]
        return [choose_engine(config, name) for name in names]
    told = told_by(FleetAddress.of(share_fleet))
    names = list(told.running) if variant == AUTO else [variant]
    return [shared_engine(config, told.share(name)) for name in names]
