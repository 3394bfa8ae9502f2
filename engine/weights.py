"""A checkpoint's tensors by name, from one safetensors file or many; it knows no layers and reads no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cluster.errors import UserError

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""By the format's name; of others only that they are none of these is asked."""


class CheckpointTensors:
    """Reads one tensor at a time, so that loading never holds a second copy of the model; its end lets the files go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[Path, Any] = {}
        self._path_of = self._locate()

    def __enter__(self) -> CheckpointTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._path_of

    def read(self, name: str, *shape: int) -> Tensor:
        """A floating-point tensor of exactly that shape, in the dtype it is stored in."""
        tensor = self.read_stored(name)
        if tuple(tensor.shape) != shape or tensor.dtype not in FLOATS:
            found = f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
            raise UserError(
                f"{self.folder}: tensor {name} is {found}, config.json asks for floats {list(shape)};"
                " give the unquantised checkpoint that belongs to this config.json"
            )
        return tensor

    def read_stored(self, name: str) -> Tensor:
        """A tensor of a quantised matrix (words, scales, group indices), as it is stored."""
        path = self._path(name)
        try:
            tensor: Tensor = self._open(path).get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{path}: tensor {name} cannot be read ({error}); fetch the checkpoint again") from error
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        return DTYPES.get(self._open(self._path(name)).get_slice(name).get_dtype(), torch.uint8)

    def _path(self, name: str) -> Path:
        if name not in self._path_of:
            raise UserError(f"{self.folder}: tensor {name} is missing; is it a whole checkpoint of this architecture?")
        return self._path_of[name]

    def _locate(self) -> dict[str, Path]:
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            return {name: self.folder / file for name, file in _weight_map(index).items()}
        path = self.folder / "model.safetensors"
        if not path.exists():
            raise UserError(f"{self.folder}: neither model.safetensors nor model.safetensors.index.json")
        return dict.fromkeys(self._open(path).keys(), path)

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            try:
                self._files[path] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: not a whole safetensors file ({error}); fetch it again") from error
        return self._files[path]


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file beside the index; nothing outside of the folder is read."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(weight_map, dict) or any(Path(file).name != file for file in weight_map.values()):
            raise ValueError("its weight_map must name files beside it")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index}: not an index of safetensors ({error}); fetch the checkpoint again") from error
    return weight_map
