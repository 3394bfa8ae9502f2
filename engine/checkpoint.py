"""The one form the engine loads: a folder of config.json, safetensors, tokenizer.json; it knows no tensor's meaning."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.model_shape import ModelShape, read_config, rope_parameters
from cluster.models import EMBEDDED_PREFIX, cache_dir, fetch, short_name


def ensure_checkpoint(source: str) -> Path:
    """The model's folder; a GGUF file is fetched and converted into the cache once, whoever asks first."""
    folder = ensure_weights(source, "model.source")
    if not (folder / "tokenizer.json").exists():
        raise UserError(
            f"{folder}: no tokenizer.json;"
            " write one with transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return folder


def with_weights(spec: EngineSpec, shape: ModelShape) -> EngineSpec:
    """The spec of a variant with a checkpoint of its own, fetched and of the model's shape; UserError otherwise."""
    variant = spec.variant
    key = f"variants.{variant.name}.source"
    if variant.source is None:
        if variant.method in ("gptq", "awq"):
            raise UserError(
                f"{key}: {variant.method} needs a checkpoint to run; make one with `quantfleet quantize"
                f" {spec.checkpoint} --method {variant.method} -o DIR` and give its folder"
            )
        return spec
    folder = ensure_weights(variant.source, key)
    own = replace(ModelShape.from_hf_config(folder, spec.max_context), name=shape.name)
    theirs, ours = (asdict(each) | _arithmetic(at) for each, at in ((own, folder), (shape, Path(spec.checkpoint))))
    odd = [f"{name} {theirs[name]} for {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if odd:
        raise UserError(
            f"{key} {variant.source!r}: not the model's own shape ({', '.join(odd)}); give a checkpoint of this model"
        )
    return replace(spec, variant=replace(variant, source=str(folder)))


def _arithmetic(folder: Path) -> dict[str, Any]:
    """What of a config.json changes the numbers beside the shape: the engine takes these from the model's."""
    config = read_config(folder)
    return {"rope": rope_parameters(config), "rms_norm_eps": config.get("rms_norm_eps")}


def ensure_weights(source: str, key: str) -> Path:
    """The folder of config.json and safetensors, with or without a tokenizer; `key` names it in errors."""
    if source.startswith(EMBEDDED_PREFIX):
        folder = cache_dir() / "checkpoints" / short_name(source)
        if not folder.exists():
            _convert_once(source, folder)
        return folder
    path = fetch(source, key)
    if path.suffix == ".gguf":
        folder = cache_dir() / "checkpoints" / f"{short_name(source)}-{_file_key(path)}"
        if not folder.exists():
            _convert_once(source, folder)
        return folder
    _refuse_incomplete(path, key)
    return path


def converted(source: str) -> Path | None:
    """The folder that `ensure_checkpoint` would give for an embedded model, if it is there already."""
    folder = cache_dir() / "checkpoints" / short_name(source)
    return folder if source.startswith(EMBEDDED_PREFIX) and folder.exists() else None


def _convert_once(source: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.with_name(folder.name + ".lock")):
        if folder.exists():  # another process converted it while this one waited
            return
        # Imported here: a replica that finds its checkpoint ready must not pay for gguf and its reader.
        from engine.gguf_checkpoint import convert

        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            convert(fetch(source), scratch, name=short_name(source))
            scratch.chmod(0o755)  # mkdtemp gives 0700, and a cache may be shared
            os.replace(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel lets go of it when the holder dies, so none is ever stale."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _file_key(path: Path) -> str:
    stat = path.stat()
    return hashlib.sha256(f"{path}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:12]


def _refuse_incomplete(folder: Path, key: str) -> None:
    if not folder.is_dir():
        raise UserError(f"{key} {str(folder)!r}: neither a folder nor a .gguf file")
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: no config.json; a model folder holds config.json, *.safetensors and tokenizer.json")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
        found = f" but {pickled[0]}, a pickle file, which is never read" if pickled else ""
        raise UserError(f"{folder}: no *.safetensors{found}; save the model with safe_serialization=True")
