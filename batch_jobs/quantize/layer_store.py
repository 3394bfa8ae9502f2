"""Finished decoder blocks of a quantisation on disk, so that one that was killed goes on; it knows no method.

DIR.partial/layer-00012.safetensors is there whole or not at all, and carries the key of what made it: model, method,
settings, calibration. Files of another key are of another quantisation and are removed.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from batch_jobs.quantize.safetensors_file import write_safetensors
from cluster.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStore:
    """Where the blocks lie; a value that goes to every worker. The folder is one that all of them see."""

    folder: Path
    key: str

    def path(self, index: int) -> Path:
        return self.folder / f"layer-{index:05d}.safetensors"

    def write(self, index: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """tensors by their names in the checkpoint; facts: whatever JSON takes, for the report."""
        write_safetensors(self.path(index), tensors, {"key": self.key, "facts": json.dumps(facts)})

    def holds(self, index: int) -> bool:
        return self._key_of(self.path(index)) == self.key

    def tensors(self, index: int) -> dict[str, Tensor]:
        """Mapped, not copied."""
        with safe_open(self.path(index), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)

    def facts(self, index: int) -> dict[str, Any]:
        with safe_open(self.path(index), framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
            return facts

    def clear_others(self) -> int:
        """Removes files of other keys and damaged ones; how many of a whole other quantisation there were."""
        others = 0
        for path in self.folder.glob("layer-*.safetensors"):
            key = self._key_of(path)
            if key != self.key:
                others += key is not None
                path.unlink()
        return others

    def _key_of(self, path: Path) -> str | None:
        try:
            with safe_open(path, framework="pt") as file:
                key: str | None = (file.metadata() or {}).get("key")
                return key
        except (SafetensorError, OSError):
            return None


@dataclass(slots=True, kw_only=True)
class PartialFolder:
    """DIR.partial, held by one job at a time; the kernel lets go of it when that one dies."""

    path: Path
    _lock: IO[str] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, output: Path) -> PartialFolder:
        return cls(path=output.with_name(output.name + ".partial"))

    def open(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("w")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}; give another -o") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path}: another quantize is writing there; wait for it or give another -o") from None

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def remove(self) -> None:
        shutil.rmtree(self.path)
