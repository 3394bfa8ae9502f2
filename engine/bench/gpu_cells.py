"""One variant of a made-up model on one GPU: decode latency, throughput, idle time, profile; run in its own process.

python -m engine.bench.gpu_cells CELL_AS_JSON     prints a GpuFigures as JSON on its last line
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field, replace

import msgspec
import torch

from cluster.engine_spec import EngineSpec
from cluster.request import GenerationRequest, SamplingParams
from engine.engine import Engine, Results, StepRunner
from engine.gpu.runner import GpuRunner
from engine.gpu.startup import start_runner
from engine.sequence import ChunkResult, ScheduledChunk
from engine.trial import Trial

SHORT, LONG, PROMPT = 8, 264, 512
REPEATS = 3
IDLE_BATCH, IDLE_STEPS = 32, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCell:
    spec: EngineSpec
    requests: int = 256
    """Of the throughput run; 0 leaves it out."""
    profile_batches: tuple[int, ...] = ()
    """Batches of decodes whose kernels are listed by the time they take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFigures:
    one_sequence_ms: float
    """Per token: the least of three."""
    output_tokens_per_s: float = 0.0
    total_s: float = 0.0
    output_tokens: int = 0
    host_waits_share: float = 0.0
    """Of the throughput run: near 0 the host is the bottleneck."""
    prompt_tokens_per_s: float = 0.0
    """Of steps of 8 prompts of 1,024 tokens."""
    idle_share: float = 0.0
    """Of a decode step at batch 32: 1 - the graph's own time / the time between steps."""
    decode_step_ms: dict[int, float] = field(default_factory=dict)
    """The graph's own time at 640 tokens of context each, by batch."""
    start_s: float = 0.0
    kv_capacity_tokens: int = 0
    kernels: dict[int, list[tuple[str, int, float]]] = field(default_factory=dict)
    """By batch (0: the step of prompts): name, launches a step, microseconds a step."""


def measure(cell: GpuCell) -> GpuFigures:
    started_s = time.perf_counter()
    runner = start_runner(cell.spec)
    start_s = time.perf_counter() - started_s
    gc.freeze()  # as the engine's process does
    engine = Engine(cell.spec, runner)
    one = _one_sequence_ms(engine)
    print(f"{cell.spec.variant.name}: ready after {start_s:.1f} s; one sequence {one:.3f} ms a token", file=sys.stderr)
    waiting = WaitMeter(runner)
    tokens, seconds = _throughput(cell.spec, waiting, cell.requests) if cell.requests else (0, 1.0)
    figures = GpuFigures(
        one_sequence_ms=one,
        output_tokens_per_s=tokens / seconds,
        total_s=seconds,
        output_tokens=tokens,
        host_waits_share=waiting.seconds / seconds,
        prompt_tokens_per_s=_prompt_rate(runner),
        idle_share=_idle_share(cell.spec, runner),
        decode_step_ms={batch: _graph_s(runner, batch, 640) * 1e3 for batch in (1, 8, 32, 128, 256)},
        start_s=start_s,
        kv_capacity_tokens=runner.num_blocks * cell.spec.block_size,
    )
    return replace(figures, kernels={batch: _kernels(runner, batch) for batch in cell.profile_batches})


def _one_sequence_ms(engine: Engine) -> float:
    """(t(264 tokens) - t(8)) / 256 of the same 512-token prompt: what comes before the ninth token goes out."""
    prompt = [random.Random(1).randrange(10, 100_000) for _ in range(PROMPT)]
    _generate_s(engine, prompt, SHORT)
    differences = [_generate_s(engine, prompt, LONG) - _generate_s(engine, prompt, SHORT) for _ in range(REPEATS)]
    return min(differences) / (LONG - SHORT) * 1e3


def _generate_s(engine: Engine, prompt: list[int], tokens: int) -> float:
    started_s = time.perf_counter()
    _add(engine, "one", prompt, tokens)
    while engine.has_work:
        engine.step()
    return time.perf_counter() - started_s


def _add(engine: Engine, request_id: str, prompt: list[int], tokens: int) -> None:
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    request = GenerationRequest(request_id=request_id, prompt_token_ids=prompt, sampling=sampling)
    verdict = engine.add(request)
    assert verdict.admitted, verdict.reason


class WaitMeter:
    """The runner, with the time that its results are waited for."""

    def __init__(self, runner: GpuRunner) -> None:
        self._runner = runner
        self.num_blocks, self.vocab_size = runner.num_blocks, runner.vocab_size
        self.eos_token_ids, self.lookahead = runner.eos_token_ids, runner.lookahead
        self.seconds = 0.0

    def assume(self, chunks: list[ScheduledChunk]) -> None:
        self._runner.assume(chunks)

    def launch(self, chunks: list[ScheduledChunk]) -> Results:
        results = self._runner.launch(chunks)

        def wait() -> list[ChunkResult]:
            started_s = time.perf_counter()
            found = results()
            self.seconds += time.perf_counter() - started_s
            return found

        return wait


def _prompt_rate(runner: GpuRunner) -> float:
    trial = Trial(chunk=1024, prompts=8)
    times_s = []
    for _ in range(3):
        chunks = trial.chunks(runner.block_size)
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        runner.run(chunks)
        times_s.append(time.perf_counter() - started_s)
    return trial.prompts * trial.chunk / min(times_s)


def _throughput(spec: EngineSpec, runner: StepRunner, num_requests: int) -> tuple[int, float]:
    """Output tokens and seconds of random requests, all submitted at once to an engine whose prefix cache is empty."""
    engine = Engine(spec, runner)
    r = random.Random(0)
    requests = [
        ([r.randrange(10, 100_000) for _ in range(r.randint(100, 1024))], r.randint(100, 1024))
        for _ in range(num_requests)
    ]
    torch.cuda.synchronize()
    started_s = time.perf_counter()
    for index, (prompt, tokens) in enumerate(requests):
        _add(engine, str(index), prompt, tokens)
    generated = 0
    while engine.has_work:
        generated += sum(len(delta.token_ids) for delta in engine.step())
    seconds = time.perf_counter() - started_s
    assert generated == sum(tokens for _, tokens in requests), "no early stop"
    return generated, seconds


def _idle_share(spec: EngineSpec, runner: GpuRunner) -> float:
    engine = Engine(spec, runner)
    for index in range(IDLE_BATCH):
        _add(engine, str(index), [10 + index] * PROMPT, IDLE_STEPS + 60)
    while engine.load().waiting_prefill_tokens:
        engine.step()
    for _ in range(8):
        engine.step()
    times_s = []
    for _ in range(IDLE_STEPS // 10):
        started_s = time.perf_counter()
        for _ in range(10):
            engine.step()
        times_s.append((time.perf_counter() - started_s) / 10)
    while engine.has_work:
        engine.step()
    return 1 - _graph_s(runner, IDLE_BATCH, PROMPT + 60) / statistics.median(times_s)


def _graph_s(runner: GpuRunner, batch: int, context: int, steps: int = 20) -> float:
    """The graph alone, replayed without a host in between: the GPU's own time of a decode step."""
    if batch > runner.max_sequences:
        return float("nan")
    runner.assume_decodes(batch, context)
    runner.replay_decodes(batch)
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(steps):
        runner.replay_decodes(batch)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / steps / 1e3


def _kernels(runner: GpuRunner, batch: int, steps: int = 5) -> list[tuple[str, int, float]]:
    from torch.profiler import ProfilerActivity, profile

    if batch:
        runner.assume_decodes(batch, 640)

    def step() -> None:
        if batch:
            runner.replay_decodes(batch)
        else:
            runner.run(Trial(chunk=1024, prompts=8).chunks(runner.block_size))

    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    events = profiler.key_averages()
    rows = [(event.key[:60], event.count // steps, event.self_device_time_total / steps) for event in events]
    return sorted(rows, key=lambda row: -row[2])[:14]


def main() -> None:
    cell = msgspec.json.decode(sys.argv[1], type=GpuCell)
    print(json.dumps(asdict(measure(cell))))


if __name__ == "__main__":
    main()
