"""Quantises whole blocks by methods that look at weights only; which blocks, and on how many workers, the job knows."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import torch

from batch_jobs.quantize.layer_store import LayerStore
from batch_jobs.quantize.matrices import block_prefix
from batch_jobs.quantize.settings import QuantizeSettings
from batch_jobs.quantize.source_model import SourceTensors
from batch_jobs.quantize.weight_formats import dense, matrix_tensors, quantize_by_weight


class WeightWorker:
    """A plain class that the job makes Ray actors of."""

    def __init__(self, folder: Path, settings: QuantizeSettings, store: LayerStore, device: str) -> None:
        torch.set_grad_enabled(False)
        if device == "cpu":
            torch.set_num_threads(1)
        self._source, self._settings, self._store, self._device = SourceTensors(folder), settings, store, device

    def quantize(self, index: int) -> dict[str, Any]:
        """Stores the block; ||Q - W||^2 / ||W||^2 of its matrices by full name."""
        prefix = block_prefix(index)
        tensors = {prefix + name: vector for name, vector in self._source.vectors(index).items()}
        errors = {}
        for name in self._source.sizes:
            weight = self._source.matrix(index, name).to(self._device).float()
            matrix = quantize_by_weight(weight, self._settings)
            tensors |= matrix_tensors(prefix + name, matrix, self._settings)
            power = float(weight.square().sum(dtype=torch.float64))
            error = float((dense(matrix) - weight).square().sum(dtype=torch.float64))
            errors[prefix + name] = {"weight_error": error / power if power else 0.0}
        self._store.write(index, tensors, errors)
        return errors

    def peak_memory_bytes(self) -> int:
        if self._device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
