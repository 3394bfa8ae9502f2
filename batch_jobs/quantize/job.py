"""The job from a model to a quantised checkpoint: what is checked, run on Ray's workers, and put in place at the end.

It knows no command line and no method's arithmetic; whoever calls `run_quantize` may have a Ray running already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from batch_jobs.disk import full_disk_told
from batch_jobs.local_ray import job_ray
from batch_jobs.quantize.calibration import Calibration, CalibrationSettings, read_calibration
from batch_jobs.quantize.checkpoint_writer import empty_assembly, put_in_place, refuse_output, write_rest, write_tensors
from batch_jobs.quantize.layer_store import LayerStore, PartialFolder
from batch_jobs.quantize.progress import BlockBar, block_bar
from batch_jobs.quantize.quantization_config import quantization_config
from batch_jobs.quantize.report import QuantizeReport
from batch_jobs.quantize.settings import CALIBRATED, GROUP_SIZES, INTEGER, QuantizeSettings
from batch_jobs.quantize.source_model import SourceTensors
from cluster.errors import UserError
from cluster.model_shape import ModelShape, read_config
from engine.checkpoint import ensure_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeJob:
    """What a user asks for."""

    source: str
    """A model name, a Hugging Face id or a folder"""
    output: Path
    settings: QuantizeSettings
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    num_workers: int | None = None
    """None: one a GPU, or one a core"""
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.num_workers is not None and not 1 <= self.num_workers <= 4096:
            raise UserError(f"--workers {self.num_workers}: must lie between 1 and 4096")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedJob:
    """The job with all that could be found out before anything runs."""

    job: QuantizeJob
    checkpoint: Path
    shape: ModelShape
    settings: QuantizeSettings
    calibration: Calibration | None
    source_bytes: int
    """Of all its tensors"""

    @property
    def key(self) -> str:
        """Equal for jobs whose finished blocks are each other's."""
        stats = [(path.name, path.stat()) for path in sorted(self.checkpoint.glob("*.safetensors"))]
        files = ";".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)
        windows = self.calibration.windows_sha256 if self.calibration else ""
        return self.settings.key(str(self.checkpoint.resolve()), files, windows)


RunBlocks = Callable[[PreparedJob, LayerStore, BlockBar], int]
"""Quantises the blocks that the store does not hold yet, and says the peak memory in bytes."""


def on_ray(prepared: PreparedJob, store: LayerStore, bar: BlockBar) -> int:
    """RunBlocks by Ray actors, one a GPU or one a core."""
    with job_ray():
        from batch_jobs.quantize.ray_workers import quantize_calibrated, quantize_weights  # once Ray's tokens are set

        folder, settings, num_workers = prepared.checkpoint, prepared.settings, prepared.job.num_workers
        num_blocks = prepared.shape.layers
        if prepared.calibration is None:
            return quantize_weights(folder, settings, store, num_blocks, num_workers, bar)
        return quantize_calibrated(folder, prepared.calibration.windows, settings, store, num_blocks, num_workers, bar)


def run_quantize(job: QuantizeJob, console: Console | None = None, run_blocks: RunBlocks = on_ray) -> QuantizeReport:
    """Runs the job to its end. UserError before anything is written where the job cannot run as asked.

    Killed or interrupted, the same job goes on after the last finished block.
    """
    console = console or Console(quiet=True)
    started_s = time.monotonic()
    prepared = prepare(job, console)
    partial = PartialFolder.of(job.output)
    partial.open()
    try:
        with full_disk_told(partial.path):
            report = _run(prepared, partial, console, run_blocks, started_s)
            partial.remove()
    finally:
        partial.close()
    return report


def prepare(job: QuantizeJob, console: Console) -> PreparedJob:
    refuse_output(job.output, job.overwrite)
    checkpoint = ensure_checkpoint(job.source)
    shape = _shape(checkpoint, job)
    settings = job.settings.fitted(shape)
    if settings.method in INTEGER and job.settings.group_size == "largest" and settings.group_size != GROUP_SIZES[0]:
        console.print(f"{GROUP_SIZES[0]} does not divide all rows of {shape.name}: {settings.summary}", highlight=False)
    with SourceTensors(checkpoint) as source:
        source_bytes = source.num_bytes()  # looks each tensor up, so a damaged checkpoint is refused here
    calibration = None
    if settings.method in CALIBRATED:
        calibration = read_calibration(job.calibration, checkpoint)
        if job.calibration.file is None:
            console.print(f"calibrating with the {calibration.name}; a text of your own is better (--calibration FILE)")
    return PreparedJob(
        job=job,
        checkpoint=checkpoint,
        shape=shape,
        settings=settings,
        calibration=calibration,
        source_bytes=source_bytes,
    )


def _shape(checkpoint: Path, job: QuantizeJob) -> ModelShape:
    config = read_config(checkpoint)
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise UserError(f"{checkpoint}: is quantised already ({method}); give the unquantised checkpoint")
    shape = ModelShape.from_hf_config(config, min(job.calibration.seq_len, config.get("sliding_window") or 2**62))
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    longest = min(shape.max_positions, window or shape.max_positions)
    if job.settings.method in CALIBRATED and job.calibration.seq_len > longest:
        raise UserError(f"--seq-len {job.calibration.seq_len}: {shape.name} attends to {longest} tokens; give no more")
    return shape


def _run(
    prepared: PreparedJob, partial: PartialFolder, console: Console, run_blocks: RunBlocks, started_s: float
) -> QuantizeReport:
    store = LayerStore(folder=partial.path, key=prepared.key)
    others = store.clear_others()
    if others:
        console.print(f"{partial.path}: {others} blocks of another model, method or setting; beginning anew")
    done = sum(store.holds(index) for index in range(prepared.shape.layers))
    if done:
        console.print(f"{partial.path}: {done} of {prepared.shape.layers} blocks are done; going on")
    peak_memory_bytes = 0
    if done < prepared.shape.layers:  # else the kill came while the folder was put together
        with block_bar(console, prepared.shape.layers) as bar:
            peak_memory_bytes = run_blocks(prepared, store, bar)
    matrices = {name: errors for at in range(prepared.shape.layers) for name, errors in store.facts(at).items()}
    return _assemble(prepared, partial, store, matrices, done, peak_memory_bytes, started_s)


def _assemble(
    prepared: PreparedJob,
    partial: PartialFolder,
    store: LayerStore,
    matrices: Mapping[str, Mapping[str, float]],
    num_resumed_blocks: int,
    peak_memory_bytes: int,
    started_s: float,
) -> QuantizeReport:
    folder = empty_assembly(partial)
    with SourceTensors(prepared.checkpoint) as source:
        output_bytes = write_tensors(source, store, folder)
        report = QuantizeReport(
            source=prepared.job.source,
            output=prepared.job.output,
            settings=prepared.settings,
            calibration=prepared.calibration,
            matrices=matrices,
            source_bytes=prepared.source_bytes,
            output_bytes=output_bytes,
            seconds=time.monotonic() - started_s,
            num_resumed_blocks=num_resumed_blocks,
            peak_memory_bytes=peak_memory_bytes,
        )
        write_rest(source, report, quantization_config(prepared.settings), folder)
    put_in_place(folder, prepared.job.output)
    return report
