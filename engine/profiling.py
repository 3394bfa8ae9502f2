"""Measures a Profile: step times of the real runner, decodes and chunks of prompts alone and together; it fits nothing.

`ensure_profile` is for parents: it imports no torch and measures in a process of its own, once for each machine.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import msgspec

import engine
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.models import cache_dir
from cluster.profile import Profile, ProfileKey, ProfilePoint
from cluster.variants import Variant
from engine.checkpoint import file_lock
from engine.engine import StepRunner, build_runner
from engine.process import PYTHON_MODULE, child_environment
from engine.sequence import ScheduledChunk
from engine.step_meter import step_shape
from engine.trial import Trial, trial_sequence

STEP_FILES = ("runner.py", "model.py", "linear.py", "token_batch.py", "sampling_batch.py")
MAX_REPETITIONS = 5
POINT_BUDGET_S = 0.2
"""A shape is repeated until its steps took so long; the fastest counts: what else the machine did is no part of it."""

TIME_LIMIT_S = 6.0
MIN_POINTS = 8
"""More than the cost model has coefficients."""


TRIALS = (
    Trial(decodes=1, context=64),
    Trial(chunk=64),
    Trial(decodes=8, context=64),
    Trial(decodes=8, context=512),
    Trial(chunk=256),
    Trial(decodes=32, context=64),
    Trial(decodes=4, context=64, chunk=64),
    Trial(chunk=64, chunk_context=512),
    Trial(decodes=1, context=512),
    Trial(decodes=2, context=64),
    Trial(decodes=4, context=64),
    Trial(decodes=16, context=64),
    Trial(decodes=16, context=512),
    Trial(decodes=16, context=512, chunk=64),
    Trial(decodes=8, context=64, chunk=128, chunk_context=256),
    Trial(chunk=16),
    Trial(decodes=32, context=256),
    Trial(chunk=512),
)
"""The most telling first: on a machine that is slow, or busy, the last are left out."""


def profile_path(spec: EngineSpec) -> Path:
    return cache_dir() / "profiles" / profile_key(spec).file_name()


def profile_key(spec: EngineSpec) -> ProfileKey:
    if spec.accelerator is None:
        raise ValueError(f"{spec.replica_id}: a profile is of an accelerator, and the engine's spec names none")
    return ProfileKey(
        model=Path(spec.checkpoint).name,
        variant=spec.variant.name,
        accelerator=spec.accelerator.name,
        threads=spec.num_threads,
        versions={name: version(name) for name in ("torch", "numba")}
        | {"quantfleet": _code_digest(), "variant": _speed_settings(spec.variant)},
        share=spec.share,
    )


def _speed_settings(variant: Variant) -> str:
    """What of a variant changes its speed: the same name may come to mean other settings."""
    return " ".join(f"{key}={value}" for key, value in asdict(variant).items() if key not in ("name", "quality"))


def _code_digest() -> str:
    """Of what a step runs: with other kernels the old figures are wrong, whatever the version says."""
    root = Path(engine.__file__).parents[1]
    kernels, gpu_steps = (root / "kernels").rglob("*.py"), (root / "engine" / "gpu").glob("*.py")
    files = [*kernels, *gpu_steps, *(root / "engine" / name for name in STEP_FILES)]
    return sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:12]


def ensure_profile(spec: EngineSpec) -> Path:
    """The profile on disk; measured first, in some seconds, where there is none. One measurement runs at a time."""
    path, key = profile_path(spec), profile_key(spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.parent / "measuring.lock"):  # two at once would measure each other
        if Profile.load(path, key) is None:
            _measure_in_child(spec, path)
    return path


def _measure_in_child(spec: EngineSpec, path: Path) -> None:
    done = subprocess.run(
        [*PYTHON_MODULE, "engine.profiling", str(path)],
        input=msgspec.json.encode(spec),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=child_environment(spec.num_threads),
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(f"measuring variant {spec.variant.name} failed: {lines[-1] if lines else done.returncode}")


def measure_profile(spec: EngineSpec) -> Profile:
    """Loads the model with a cache of its own size and times the trials that an engine of `spec` could meet."""
    trials = [trial for trial in TRIALS if _can_occur(trial, spec)]
    if not trials:
        raise ValueError(f"max_context {spec.max_context}, token_budget {spec.token_budget}: too small to measure")
    num_blocks = max(trial.num_blocks(spec.block_size) for trial in trials)
    runner = build_runner(replace(spec, kv_capacity_tokens=num_blocks * spec.block_size))
    _touch_cache(runner, spec)
    # With one thread its processor time is the step's time on an idle machine, however busy this one is.
    clock = time.thread_time if spec.num_threads == 1 and spec.device == "cpu" else time.perf_counter
    points: list[ProfilePoint] = []
    started_s = time.perf_counter()
    for trial in trials:
        if len(points) < MIN_POINTS or time.perf_counter() - started_s < TIME_LIMIT_S:
            points.append(_measured(runner, trial.chunks(spec.block_size), clock))
    return Profile(
        key=profile_key(spec), points=tuple(points), measured_at=datetime.now(UTC).isoformat(timespec="seconds")
    )


def _can_occur(trial: Trial, spec: EngineSpec) -> bool:
    return (
        trial.decodes <= spec.max_sequences
        and trial.decodes + trial.chunk <= spec.token_budget
        and max(trial.lengths) < spec.max_context
    )


def _touch_cache(runner: StepRunner, spec: EngineSpec) -> None:
    """A token into every block: pages never written are all one page of zeros, which no decode waits for."""
    blocks = range(runner.num_blocks)
    for start in range(0, len(blocks), spec.token_budget):
        some = blocks[start : start + spec.token_budget]
        # Two tokens, one computed: without a last token no logits are made.
        sequences = [trial_sequence(num_tokens=2, num_computed_tokens=0, block_table=[block]) for block in some]
        runner.launch([ScheduledChunk.of(sequence, 1) for sequence in sequences])()


def _measured(runner: StepRunner, chunks: list[ScheduledChunk], clock: Callable[[], float]) -> ProfilePoint:
    times_s: list[float] = []
    while len(times_s) < MAX_REPETITIONS and sum(times_s) < POINT_BUDGET_S:
        runner.assume(chunks)
        started_s = clock()
        runner.launch(chunks)()
        times_s.append(clock() - started_s)
    return ProfilePoint(shape=step_shape(chunks), step_s=min(times_s))


def main(path: Path, spec: EngineSpec) -> int:
    try:
        measure_profile(spec).save(path)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), msgspec.json.decode(sys.stdin.buffer.read(), type=EngineSpec)))
