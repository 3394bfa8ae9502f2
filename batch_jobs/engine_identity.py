"""What decides the texts that an engine makes: model files, variant, engine, code; it knows no job, starts nothing."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec

from batch_jobs.fingerprint import Fingerprint, code_digest, files_digest
from cluster.engine_spec import EngineSpec


class ServedVariant(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet tells of a variant, so that a job on it knows that it stays the same; JSON in GET /v1/fleet."""

    spec: EngineSpec
    """Without the model's folder, which is of the fleet's host; `max_context` is what every replica there holds."""
    settings: dict[str, Any]
    """As engine_settings has them."""
    fingerprint: str
    """Of the settings; every answer carries it."""


def engine_settings(model_name: str, spec: EngineSpec) -> dict[str, Any]:
    """A job's fingerprint is over these and its own: of two engines that differ here the texts may."""
    variant = {name: value for name, value in asdict(spec.variant).items() if name != "quality"}
    weights = {name: files_digest(Path(folder)) for name, folder in _weight_folders(spec).items()}
    return {
        "model": {"name": model_name, **weights},
        "variant": variant,
        "engine": {"max_context": sequence_limit(spec), "kv_dtype": spec.kv_dtype, "device": spec.device},
        "code": code_digest(),
    }


def sequence_limit(spec: EngineSpec) -> int:
    """Tokens that one sequence may reach, prompt and output."""
    return min(spec.max_context, spec.kv_capacity_tokens)


def served_variant(model_name: str, spec: EngineSpec, context_tokens: int) -> ServedVariant:
    """`context_tokens`: what every replica of the fleet holds of one request."""
    spec = replace(spec, max_context=min(spec.max_context, context_tokens))
    settings = engine_settings(model_name, spec)
    told = replace(spec, checkpoint="", profile_path=None)
    return ServedVariant(spec=told, settings=settings, fingerprint=Fingerprint(settings=settings).digest)


def _weight_folders(spec: EngineSpec) -> dict[str, str]:
    return {"checkpoint": spec.checkpoint} | ({"weights": spec.variant.source} if spec.variant.source else {})
