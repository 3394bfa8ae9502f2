"""Workers as Ray actors, one a GPU or one a core, and the order in which they do a model's blocks; no arithmetic.

Ray runs an actor's calls one after another in the order in which they were made, so a block's calls are made all at
once; what passes between workers goes from one to the other, not through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from batch_jobs.quantize.calibrated_worker import CalibratedWorker
from batch_jobs.quantize.layer_store import LayerStore
from batch_jobs.quantize.matrices import STAGES
from batch_jobs.quantize.progress import BlockBar
from batch_jobs.quantize.settings import QuantizeSettings
from batch_jobs.quantize.weight_worker import WeightWorker
from cluster.cpu_host import usable_cores
from cluster.errors import UserError


def quantize_calibrated(
    folder: Path,
    windows: Sequence[tuple[int, ...]],
    settings: QuantizeSettings,
    store: LayerStore,
    num_blocks: int,
    num_workers: int | None,
    bar: BlockBar,
) -> int:
    """All blocks that the store does not hold yet, in order; the peak memory in bytes."""
    device, count = _workers(num_workers, at_most=len(windows))
    shares = [list(windows[at * len(windows) // count : (at + 1) * len(windows) // count]) for at in range(count)]
    actor = _actor(CalibratedWorker, device)
    workers = [actor.remote(folder, share, settings, store, device) for share in shares]
    for index in range(num_blocks):
        if store.holds(index):
            _get([worker.advance.remote(index) for worker in workers])
            bar.resumed()
        else:
            bar.done(_block(workers, index))
    return _peak_memory_bytes(workers, device)


def quantize_weights(
    folder: Path,
    settings: QuantizeSettings,
    store: LayerStore,
    num_blocks: int,
    num_workers: int | None,
    bar: BlockBar,
) -> int:
    """The blocks that the store does not hold yet, as workers become free; the peak memory in bytes."""
    missing = [index for index in range(num_blocks) if not store.holds(index)]
    for _ in range(num_blocks - len(missing)):
        bar.resumed()
    device, count = _workers(num_workers, at_most=len(missing))
    actor = _actor(WeightWorker, device)
    workers = [actor.remote(folder, settings, store, device) for _ in range(count)]
    running = [workers[at % count].quantize.remote(index) for at, index in enumerate(missing)]
    while running:
        (done,), running = ray.wait(running, num_returns=1)
        bar.done(_get(done))
    return _peak_memory_bytes(workers, device)


def _block(workers: Sequence[Any], index: int) -> dict[str, dict[str, float]]:
    """One block through all stages on all workers; the first one quantises and writes."""
    first, *others = workers
    steps = [worker.enter.remote(index) for worker in workers]
    for stage in range(len(STAGES)):
        steps += [worker.measure.remote(stage) for worker in workers]
        steps.append(first.quantize.remote(stage, *[worker.share.remote() for worker in others]))
        if others:
            made = first.quantized.remote()
            steps += [worker.install.remote(stage, made) for worker in others]
    steps += [worker.leave.remote() for worker in workers]
    _get(steps)
    errors: dict[str, dict[str, float]] = _get(first.write.remote())
    return errors


def _workers(asked: int | None, at_most: int) -> tuple[str, int]:
    """Device and number. GPUs where torch can drive those that Ray has."""
    gpus = int(ray.cluster_resources().get("GPU", 0)) if torch.cuda.is_available() else 0
    if asked and gpus and asked > gpus:
        raise UserError(f"--workers {asked}: there are {gpus} GPUs, and each worker takes one; give {gpus} or fewer")
    return ("cuda" if gpus else "cpu"), min(asked or gpus or usable_cores(), at_most)


def _actor(worker: type, device: str) -> Any:
    """No actor claims logical CPUs: beside a fleet none may be left, and Ray would wait for one for ever."""
    return ray.remote(num_cpus=0, num_gpus=1 if device == "cuda" else 0, max_restarts=0)(worker)


def _peak_memory_bytes(workers: Sequence[Any], device: str) -> int:
    peaks: list[int] = _get([worker.peak_memory_bytes.remote() for worker in workers])
    return max(peaks) if device == "cuda" else sum(peaks)


def _get(references: Any) -> Any:
    """A user's mistake and a full disk as they were raised; anything else is a bug, with its traceback."""
    try:
        return ray.get(references)
    except RayTaskError as error:
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from None
        raise
    except (ActorDiedError, OutOfMemoryError) as error:
        if isinstance(error, ActorDiedError) and error.actor_init_failed:
            raise
        raise UserError("a worker was ended, most likely for want of memory; give fewer --workers") from None
