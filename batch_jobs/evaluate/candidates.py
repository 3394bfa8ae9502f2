"""What arguments mean: variants of the configuration, or checkpoint folders made variants of it; it loads none."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config import FleetConfig
from cluster.errors import UserError, did_you_mean
from cluster.model_shape import read_config
from cluster.quantization import quantization_of
from cluster.variants import Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    config: FleetConfig
    """With a variant for every folder."""
    names: tuple[str, ...]
    """The reference, then the others in the order given."""
    folders: Mapping[str, Path]
    """Of the variants that were given as folders."""


def find_candidates(config: FleetConfig, arguments: Sequence[str]) -> Candidates:
    known = config.variants
    folders: dict[str, Path] = {}
    sections: dict[str, dict[str, Any]] = {}
    names: list[str] = []
    for argument in arguments:
        name = argument
        if argument not in known:
            folder = _folder(argument, config)
            quantization = quantization_of(read_config(folder), str(folder / "config.json"))
            section = {"method": quantization.method if quantization else "none", "source": str(folder)}
            name = _name_of(folder, argument, known)
            folders[name] = folder
            sections |= {} if name in known else {name: section}
        if name in names:
            raise UserError(f"{argument}: {name} is given twice; name each variant once, or rename one of the folders")
        names.append(name)
    reference = reference_variant(config).name
    others = tuple(name for name in names if name != reference)
    return Candidates(config=_with_variants(config, sections), names=(reference, *others), folders=folders)


def reference_variant(config: FleetConfig) -> Variant:
    """What quality is measured against: the model's own weights in bf16, or else unquantised in another dtype."""
    unquantised = [v for v in config.variants.values() if v.method == "none" and v.source is None and v.head == "same"]
    if not unquantised:
        raise UserError("variants: none is unquantised, nothing to compare with; add `bf16: {method: none}`")
    return next((variant for variant in unquantised if variant.dtype == "bf16"), unquantised[0])


def _folder(argument: str, config: FleetConfig) -> Path:
    path = Path(argument).expanduser()
    if not path.exists():
        raise UserError(
            f"{argument}: neither a variant of the configuration nor a folder;"
            f" {did_you_mean(argument, config.variants)}"
        )
    if not path.is_dir():
        raise UserError(f"{argument}: is a file; give a variant's name or a checkpoint's folder")
    if not any(path.glob("*.safetensors")):
        raise UserError(f"{argument}: no checkpoint: it holds no *.safetensors; give a folder that `quantize` wrote")
    return path.resolve()


def _name_of(folder: Path, argument: str, known: Mapping[str, Variant]) -> str:
    """The name under which the configuration has this very folder, or else the folder's own, or a link's to it."""
    for variant in known.values():
        if variant.source is not None and Path(variant.source).expanduser().resolve() == folder:
            return variant.name
    given = Path(os.path.abspath(Path(argument).expanduser())).name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", given).lstrip("._-")
    if not name:
        raise UserError(f"{argument}: a variant's name needs a letter or a digit; rename the folder")
    if name in known:
        raise UserError(
            f"{argument}: the configuration has another variant {name}; rename the folder, or give a link to it"
            f" (ln -s {folder} my-{name})"
        )
    return name


def _with_variants(config: FleetConfig, sections: Mapping[str, dict[str, Any]]) -> FleetConfig:
    data = config.model_dump(by_alias=True, exclude_unset=True)
    return FleetConfig.of({**data, "variants": {**data["variants"], **sections}}, "fleet.yaml")
