"""A safetensors file written tensor by tensor and synced; it knows no model and no layer.

The library's own writer wants all of a file's tensors in memory at once, and tells of a full disk in words only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from batch_jobs.disk import sync_folder

TYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}
ALIGNMENT = 8


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """The length of the header, the header as JSON, the data, each tensor on its own dtype's alignment; then fsync.

    Tensors that a reader has mapped pass through page by page. Whole or not at all: written beside and renamed.
    """
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())  # wide ones first: all lie aligned
    scratch = path.with_name(f".{path.name}.part")
    try:
        with scratch.open("wb") as out:
            out.write(_header(dict(ordered), {"format": "pt", **(metadata or {})}))
            for _, tensor in ordered:
                out.write(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
            out.flush()
            os.fsync(out.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """UTF-8, synced."""
    with path.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    return len(encoded).to_bytes(8, "little") + encoded
