"""Brings a GpuRunner up: how much of the card is its own is measured, and the KV cache takes what is left of that.

Replicas that share a card start one after another, so that each one's measurements are of itself.
"""

from __future__ import annotations

import gc
import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.kv_capacity import Term, measured_capacity
from cluster.models import cache_dir
from engine.checkpoint import file_lock
from engine.gpu.runner import GpuRunner
from engine.trial import Trial

log = logging.getLogger(__name__)


def start_runner(spec: EngineSpec) -> GpuRunner:
    """Loads, measures where the spec grants bytes rather than tokens, allocates and captures."""
    with _alone_on_the_card() if spec.memory_bytes is not None else nullcontext():
        return _start(spec)


def _start(spec: EngineSpec) -> GpuRunner:
    used_before = _used_bytes() if spec.memory_bytes is not None else 0
    runner = GpuRunner(spec)
    num_blocks = spec.kv_capacity_tokens // spec.block_size
    if spec.memory_bytes is not None:
        num_blocks = min(num_blocks, _measured_blocks(runner, spec, spec.memory_bytes, used_before))
    runner.allocate(num_blocks)
    runner.capture()
    return runner


def _measured_blocks(runner: GpuRunner, spec: EngineSpec, granted: int, used_before: int) -> int:
    """A trial start with a cache of one step: its peak and its graphs are the real one's, which differs in the cache
    alone."""
    budget = -(-spec.token_budget // spec.block_size)
    loaded = _own_bytes(used_before)
    runner.allocate(budget + spec.max_sequences)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for trial in _peak_trials(spec):
        runner.run(trial.chunks(spec.block_size))
    activations = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    runner.capture()
    graphs = free - torch.cuda.mem_get_info()[0]
    runner.allocate(0)
    gc.collect()
    torch.cuda.empty_cache()
    capacity = measured_capacity(
        block_size=spec.block_size,
        bytes_per_token=runner.kv_bytes_per_token,
        terms=(
            Term(name=f"granted to {spec.replica_id} =", bytes=granted),
            Term(name="context, weights and state", bytes=-loaded),
            Term(name="activations", bytes=-activations),
            Term(name="graphs", bytes=-max(0, graphs)),
        ),
    )
    log.info("KV cache: %s", capacity.arithmetic())
    if capacity.tokens < spec.max_context:
        raise UserError(
            f"engine.max_context: one sequence of {spec.max_context} tokens does not fit for {spec.variant.name}: "
            f"{capacity.arithmetic()}; lower max_context or token_budget, or share the card less"
        )
    return capacity.blocks


def _peak_trials(spec: EngineSpec) -> list[Trial]:
    """The widest steps there are: one long chunk of a prompt, and as many prompts' ends as may run."""
    each = max(1, spec.token_budget // spec.max_sequences)
    longest = min(spec.token_budget, spec.max_context - 1)
    return [Trial(prompts=spec.max_sequences, chunk=min(each, longest)), Trial(chunk=longest)]


@contextmanager
def _alone_on_the_card() -> Iterator[None]:
    folder = cache_dir() / "gpus"
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / f"{_card()}.lock"):
        yield


def _card() -> str:
    """The first card that this process may see, by the index or UUID that nvidia-smi knows too."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"


def _own_bytes(used_before: int) -> int:
    """What this process holds, the CUDA context too: all that is used now, less what was before it came."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free - used_before


def _used_bytes() -> int:
    """Before this process has a CUDA context; NVML counts every process's, which none of them can see itself."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={_card()}"]
    said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    return int(said.strip()) * 2**20
