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
from dataclasses import replace
from itertools import chain

import torch

from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.kv_capacity import Term, measured_capacity
from cluster.models import cache_dir
from cluster.request import SamplingParams
from engine.checkpoint import file_lock
from engine.gpu.runner import GpuRunner
from engine.sequence import ScheduledChunk
from engine.trial import Trial

log = logging.getLogger(__name__)

COSTLIEST = SamplingParams(top_p=0.9, repetition_penalty=1.1, logprobs=20, prompt_logprobs=20)
"""Rows of logits are copied for penalties, and made of a prompt's own tokens for their log-probabilities."""


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
    for trial in _warm_up_trials(spec):
        if trial.num_blocks(spec.block_size) <= runner.num_blocks:
            runner.run(trial.chunks(spec.block_size))
    runner.capture()
    return runner


def _warm_up_trials(spec: EngineSpec) -> list[Trial]:
    """Prompts of every size that kernels tell apart: powers of two, where tiles change, and odd numbers, for which
    Triton compiles anew. A second of compiling belongs to the start, not to somebody's first token."""
    longest = min(spec.token_budget, spec.max_context - 1)
    sizes = [size for power in range(spec.token_budget.bit_length()) for size in (2**power, 2**power + 1)]
    alone = [Trial(chunk=size) for size in sizes if size <= longest]
    shared = [Trial(chunk=size // 2, prompts=2) for size in sizes if 2 <= size <= min(spec.token_budget, 2 * longest)]
    whole = Trial(chunk=max(1, min(longest, spec.token_budget // spec.max_sequences)), prompts=spec.max_sequences)
    wide = -(-spec.token_budget // longest)
    return [*alone, *shared, whole, Trial(chunk=spec.token_budget // wide, prompts=wide)]


def _measured_blocks(runner: GpuRunner, spec: EngineSpec, granted: int, used_before: int) -> int:
    """A trial start with a cache of one step: its peak and its graphs are the real one's, which differs in the cache
    alone."""
    budget = -(-spec.token_budget // spec.block_size)
    loaded = _own_bytes(used_before)
    runner.allocate(budget + spec.max_sequences)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for chunks in widest_steps(spec):
        runner.run(chunks)
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


def widest_steps(spec: EngineSpec) -> list[list[ScheduledChunk]]:
    """One long chunk of a prompt, and as many prompts' ends as may run; every sequence asks for all that takes memory
    beyond the draw."""
    each = max(1, spec.token_budget // spec.max_sequences)
    longest = min(spec.token_budget, spec.max_context - 1)
    trials = [Trial(prompts=spec.max_sequences, chunk=min(each, longest)), Trial(chunk=longest)]
    steps = [trial.chunks(spec.block_size) for trial in trials]
    for chunk in chain.from_iterable(steps):
        chunk.sequence.request = replace(chunk.sequence.request, sampling=COSTLIEST)
    return steps


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
