"""One worker's share of the calibration samples, and the decoder block that all workers quantise together.

A plain class: the job makes Ray actors of it and calls its steps in one order on all of them. The first worker gets
the others' statistics, quantises a stage's matrices, and hands them out; so all go on with the same block.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batch_jobs.quantize.block_pass import BlockPass
from batch_jobs.quantize.gptq import NotPositiveDefiniteError
from batch_jobs.quantize.input_statistics import InputStatistics, InputSums, pooled
from batch_jobs.quantize.layer_store import LayerStore
from batch_jobs.quantize.matrices import STAGES, Stage, block_prefix
from batch_jobs.quantize.settings import QuantizeSettings
from batch_jobs.quantize.source_model import SourceModel
from batch_jobs.quantize.stage_quantizer import MatrixError, QuantizedStage, on_device, quantize_stage
from batch_jobs.quantize.weight_formats import block_weights, matrix_tensors
from cluster.errors import UserError
from kernels.checkpoint_layouts import IntegerWeight


class CalibratedWorker:
    def __init__(
        self, folder: Path, windows: list[tuple[int, ...]], settings: QuantizeSettings, store: LayerStore, device: str
    ) -> None:
        torch.set_grad_enabled(False)
        if device == "cpu":
            torch.set_num_threads(1)  # as many workers as cores
        self._source = SourceModel(folder, torch.device(device))
        self._settings, self._store = settings, store
        self._pass = BlockPass(self._source, torch.tensor(windows))
        self._index = -1
        self._statistics: InputStatistics | None = None
        self._stage: QuantizedStage | None = None
        self._matrices: dict[str, IntegerWeight | Tensor] = {}
        self._vectors: dict[str, Tensor] = {}
        self._errors: dict[str, MatrixError] = {}

    def enter(self, index: int) -> None:
        self._index = index
        self._pass.enter(self._source.block(index))
        self._matrices, self._errors = {}, {}
        self._vectors = self._source.tensors.vectors(index)

    def measure(self, stage: int) -> None:
        """Sums up the stage's inputs over this worker's samples."""
        sums: InputSums | None = None
        for read in self._pass.run(stage):
            sums = sums or InputSums(read.inputs.shape[-1], read.inputs.device)
            sums.add(read.inputs, read.weights if self._settings.token_weights == "residual" else None)
        assert sums is not None, "a worker has one sample at least"
        self._statistics = sums.mean()

    def share(self) -> InputStatistics:
        """What `measure` found, for the first worker, which has a GPU of its own."""
        statistics = self._taken()
        return replace(statistics, hessian=statistics.hessian.cpu(), magnitude=statistics.magnitude.cpu())

    def quantize(self, stage: int, *others: InputStatistics) -> None:
        statistics = pooled([self._taken(), *others])
        matrices = STAGES[stage].matrices
        weights = {
            name: self._source.tensors.matrix(self._index, name).to(self._source.device).float() for name in matrices
        }
        storable = self._storable_scales(STAGES[stage])
        try:
            self._stage = quantize_stage(weights, statistics, self._settings, storable)
        except NotPositiveDefiniteError as error:
            raise UserError(
                f"{block_prefix(self._index)}{matrices[0]}: {error}; give more, --damping 0.1 for instance"
            ) from None
        self.install(stage, self._stage)

    def quantized(self) -> QuantizedStage:
        """What `quantize` made, for the other workers."""
        assert self._stage is not None, "quantize comes before quantized"
        return on_device(self._stage, torch.device("cpu"))

    def install(self, stage: int, made: QuantizedStage) -> None:
        """From here on the pass runs with these matrices."""
        made = on_device(made, self._source.device)
        if made.input_scales is not None:
            self._divide(STAGES[stage].previous, made.input_scales)
        self._matrices |= made.matrices
        self._errors |= made.errors
        for name in made.matrices:
            self._put_matrix(name)

    def leave(self) -> None:
        self._pass.leave()

    def write(self) -> dict[str, Any]:
        """Stores the block; its matrices' errors by full name."""
        prefix = block_prefix(self._index)
        tensors = {prefix + name: vector for name, vector in self._vectors.items()}
        for name, matrix in self._matrices.items():
            tensors |= matrix_tensors(prefix + name, matrix, self._settings)
        facts = {prefix + name: asdict(error) for name, error in self._errors.items()}
        self._store.write(self._index, tensors, facts)
        return facts

    def advance(self, index: int) -> None:
        """Carries the samples through a block that was finished before, as it is stored."""
        self._pass.enter(self._source.block(index))
        stored = block_weights(self._store.tensors(index), block_prefix(index), self._source.tensors, self._settings)
        for name, tensor in stored.items():
            self._pass.parameter(name).copy_(tensor)
        for stage in range(1, len(STAGES) - 1):  # the first and the last only say what their matrices read
            for _ in self._pass.run(stage):
                pass
        self._pass.leave()

    def peak_memory_bytes(self) -> int:
        if self._source.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _taken(self) -> InputStatistics:
        """What `measure` found; gone from here, a Hessian is as large as the matrices."""
        statistics, self._statistics = self._statistics, None
        assert statistics is not None, "measure comes before it is asked for"
        return statistics

    def _storable_scales(self, stage: Stage) -> Callable[[Tensor], Tensor] | None:
        """How AWQ's scales go into the operation before: into a norm as that is stored, into rows of a matrix exactly.

        A norm in bf16 divided by s is up to 2^-9 off; the matrices take the quotient that it does have instead.
        """
        if stage.previous.endswith("layernorm"):
            norm = self._vectors[f"{stage.previous}.weight"].to(self._source.device)

            def of_norm(scales: Tensor) -> Tensor:
                stored = (norm.float() / scales).to(norm.dtype).float()
                return torch.where(stored != 0, norm.float() / stored, 1.0)

            return of_norm
        rows, columns = self._source.tensors.sizes[stage.previous][0], self._source.tensors.sizes[stage.matrices[0]][1]
        return (lambda scales: scales) if rows == columns else None  # grouped queries: a row of v is read by several

    def _divide(self, previous: str, scales: Tensor) -> None:
        matrix = self._matrices.get(previous)
        if isinstance(matrix, IntegerWeight):
            self._matrices[previous] = replace(matrix, scales=(matrix.scales.float() / scales[:, None]).half())
            self._put_matrix(previous)
        for kind in ("weight", "bias"):
            vector = self._vectors.get(f"{previous}.{kind}")
            if vector is not None:
                divided = (vector.float() / scales.to(vector.device)).to(vector.dtype)
                self._vectors[f"{previous}.{kind}"] = divided
                self._pass.parameter(f"{previous}.{kind}").copy_(divided)

    def _put_matrix(self, name: str) -> None:
        matrix = self._matrices[name]
        dense = matrix if isinstance(matrix, Tensor) else matrix.dequantize()
        self._pass.parameter(f"{name}.weight").copy_(dense)
