"""Measures a Profile: step times of the real runner, decodes and chunks of prompts alone and together; it fits nothing.

`ensure_profile` is for parents: it imports no torch and measures in a process of its own, once for each machine.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from statistics import median

import msgspec

import engine
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.models import cache_dir
from cluster.profile import Profile, ProfileKey, ProfilePoint, StepShape
from cluster.variants import Variant
from engine.checkpoint import file_lock
from engine.engine import StepRunner, build_runner
from engine.process import PYTHON_MODULE, child_environment
from engine.profile_trials import profile_trials
from engine.sequence import ScheduledChunk
from engine.step_meter import step_shape
from engine.trial import Trial, trial_sequence

STEP_FILES = ("runner.py", "model.py", "linear.py", "token_batch.py", "sampling_batch.py")
MAX_REPETITIONS = 20


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How long a measurement may take."""

    point_s: float
    """A shape is repeated until its steps took so long; the median counts: the fastest is 10 to 15 % below what an
    engine's steps come to take on a machine with neighbours."""
    cpu_s: float
    """Of all steps together; the last trials are left out."""
    gpu_s: float
    """Its steps are many and short, but each shape may have a kernel to compile first."""


AT_START = Effort(point_s=0.2, cpu_s=6.0, gpu_s=40.0)
"""Of a fleet: seconds that its user waits."""
THOROUGH = Effort(point_s=1.0, cpu_s=45.0, gpu_s=50.0)
MIN_POINTS = 8
"""More than the cost model has coefficients."""


class Measurement(msgspec.Struct, frozen=True):
    """What the process that measures is told."""

    spec: EngineSpec
    trials: list[Trial]
    effort: Effort


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
        | {"quantfleet": _code_digest(), "variant": _speed_settings(spec.variant), "steps": _steps(spec)},
        share=spec.share,
    )


def _speed_settings(variant: Variant) -> str:
    """What of a variant changes its speed: the same name may come to mean other settings."""
    return " ".join(f"{key}={value}" for key, value in asdict(variant).items() if key not in ("name", "quality"))


def _steps(spec: EngineSpec) -> str:
    """Only steps that can occur are measured, so a narrow engine's profile says little of a wide one's."""
    return f"max_context={spec.max_context} token_budget={spec.token_budget} max_sequences={spec.max_sequences}"


def _code_digest() -> str:
    """Of what a step runs: with other kernels the old figures are wrong, whatever the version says."""
    root = Path(engine.__file__).parents[1]
    kernels, gpu_steps = (root / "kernels").rglob("*.py"), (root / "engine" / "gpu").glob("*.py")
    files = [*kernels, *gpu_steps, *(root / "engine" / name for name in STEP_FILES)]
    return sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:12]


def ensure_profile(spec: EngineSpec) -> Path:
    """The profile on disk; measured first, in some seconds, where there is none. One measurement runs at a time."""
    path, key = profile_path(spec), profile_key(spec)
    with _alone():
        if Profile.load(path, key) is None:
            _measured_in_child(spec, _trials(spec), AT_START).save(path)
    return path


def measured_anew(spec: EngineSpec) -> Profile:
    """In up to a minute; kept, in place of the one on disk."""
    with _alone():
        profile = _measured_in_child(spec, _trials(spec), THOROUGH)
    profile.save(profile_path(spec))
    return profile


def measured_on(spec: EngineSpec, trials: Sequence[Trial]) -> Profile:
    """On other steps than a profile's own; not kept."""
    with _alone():
        return _measured_in_child(spec, trials, THOROUGH)


@contextmanager
def _alone() -> Iterator[None]:
    """Two at once would measure each other."""
    folder = cache_dir() / "profiles"
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / "measuring.lock"):
        yield


def _trials(spec: EngineSpec) -> list[Trial]:
    try:
        return profile_trials(spec)
    except ValueError as error:
        raise UserError(f"measuring variant {spec.variant.name} failed: {error}") from None


def _measured_in_child(spec: EngineSpec, trials: Sequence[Trial], effort: Effort) -> Profile:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        done = subprocess.run(
            [*PYTHON_MODULE, "engine.profiling", str(path)],
            input=msgspec.json.encode(Measurement(spec, list(trials), effort)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=child_environment(spec.num_threads),
            check=False,
        )
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise UserError(f"measuring variant {spec.variant.name} failed: {lines[-1] if lines else done.returncode}")
        return Profile.from_json(path.read_text())


def measure_profile(measurement: Measurement) -> Profile:
    """Loads the model with a cache of the trials' size and times them, or as many as there is time for."""
    spec, trials, effort = measurement.spec, measurement.trials, measurement.effort
    limit_s = effort.gpu_s if spec.device == "cuda" else effort.cpu_s
    num_blocks = max(trial.num_blocks(spec.block_size) for trial in trials)
    runner = build_runner(replace(spec, kv_capacity_tokens=num_blocks * spec.block_size))
    if spec.device == "cpu":
        _touch_cache(runner, spec)
    timer = _timer(runner, spec)
    points: list[ProfilePoint] = []
    started_s = time.perf_counter()
    for trial in trials:
        in_time = time.perf_counter() - started_s < limit_s
        if trial.num_blocks(spec.block_size) <= runner.num_blocks and (in_time or len(points) < MIN_POINTS):
            points.append(_measured(timer, trial.chunks(spec.block_size), effort.point_s))
    return Profile(
        key=profile_key(spec), points=tuple(points), measured_at=datetime.now(UTC).isoformat(timespec="seconds")
    )


def _touch_cache(runner: StepRunner, spec: EngineSpec) -> None:
    """A token into every block: pages never written are all one page of zeros, which no decode waits for."""
    blocks = range(runner.num_blocks)
    for start in range(0, len(blocks), spec.token_budget):
        some = blocks[start : start + spec.token_budget]
        # Two tokens, one computed: without a last token no logits are made.
        sequences = [trial_sequence(num_tokens=2, num_computed_tokens=0, block_table=[block]) for block in some]
        runner.launch([ScheduledChunk.of(sequence, 1) for sequence in sequences])()


Timer = Callable[[list[ScheduledChunk]], float]
"""Seconds of one step."""


def _timer(runner: StepRunner, spec: EngineSpec) -> Timer:
    if spec.device == "cuda":
        return _gpu_timer(runner)
    # With one thread its processor time is the step's time on an idle machine, however busy this one is.
    clock = time.thread_time if spec.num_threads == 1 else time.perf_counter

    def step_s(chunks: list[ScheduledChunk]) -> float:
        runner.assume(chunks)
        started_s = clock()
        runner.launch(chunks)()
        return clock() - started_s

    return step_s


def _gpu_timer(runner: StepRunner) -> Timer:
    """From an idle card to the results: an engine prepares a step while the one before runs, so it is a little faster.

    The first step of a shape, which may compile a kernel, is not timed.
    """
    import torch

    seen: set[StepShape] = set()

    def step_s(chunks: list[ScheduledChunk]) -> float:
        shape = step_shape(chunks)
        if shape not in seen:
            seen.add(shape)
            runner.assume(chunks)
            runner.launch(chunks)()
        runner.assume(chunks)
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        runner.launch(chunks)()
        return time.perf_counter() - started_s

    return step_s


def _measured(step_s: Timer, chunks: list[ScheduledChunk], budget_s: float) -> ProfilePoint:
    times_s: list[float] = []
    while len(times_s) < MAX_REPETITIONS and sum(times_s) < budget_s:
        times_s.append(step_s(chunks))
    return ProfilePoint(shape=step_shape(chunks), step_s=median(times_s))


def main(path: Path, measurement: Measurement) -> int:
    try:
        measure_profile(measurement).save(path)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), msgspec.json.decode(sys.stdin.buffer.read(), type=Measurement)))
