"""A model's config.json without its weights, so that a fleet can be planned for a model not yet downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.model_shape import ModelShape, read_config
from cluster.models import EMBEDDED_PREFIX, is_hub_id, known_sources, on_disk

EMBEDDED = Path(__file__).parent / "embedded"
"""The dimensions of each embedded model: its GGUF file would tell, but only once it is downloaded."""


def shape_of(source: str, max_context: int | None = None) -> ModelShape:
    return ModelShape.from_hf_config(model_config(source), max_context)


def model_config(source: str, key: str = "model.source") -> dict[str, Any]:
    """`key` is what of fleet.yaml names the model, for the errors."""
    if source.startswith(EMBEDDED_PREFIX):
        return _embedded(source.removeprefix(EMBEDDED_PREFIX), key)
    path = on_disk(source)
    if path is not None:
        return read_config(path)
    if is_hub_id(source):
        return {**read_config(_from_hub(source, key)), "_name_or_path": source}
    raise UserError(f"{key} {source!r}: no such folder; give a folder, a Hugging Face id or {known_sources()}")


def _embedded(name: str, key: str) -> dict[str, Any]:
    file = EMBEDDED / f"{name}.json"
    if not file.exists():
        raise UserError(f"{key} {EMBEDDED_PREFIX + name!r}: unknown embedded model; known are {known_sources()}")
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def _from_hub(repo_id: str, key: str) -> Path:
    """config.json alone, a kilobyte; HF_HUB_OFFLINE is honoured."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, "config.json"))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{key} {repo_id!r}: config.json is neither in the local cache nor to be had from the hub"
            f" ({type(error).__name__}); check the network (HF_HUB_OFFLINE, HF_ENDPOINT), or give a folder"
        ) from error
