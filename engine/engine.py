"""Engine: one replica's generation loop, add, step, abort, load; it knows no process, no HTTP and no tensors."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol

import psutil

from cluster.cost_model import CostModel
from cluster.engine_spec import EngineSpec
from cluster.load import Load
from cluster.profile import StepShape
from cluster.request import GenerationRequest, TokenDelta, Verdict
from cluster.waiting_room import most_requests
from engine.admission import refusal
from engine.background_room import BackgroundRoom
from engine.kv_cache import BlockPool
from engine.live_request import LiveRequest
from engine.queue_load import queue_load, with_waiting
from engine.scheduler import Scheduler
from engine.sequence import ChunkResult, ScheduledChunk, Sequence
from engine.step_meter import StepMeter, step_shape
from engine.text import StreamDetokenizer, TextCodec
from engine.trial import Trial

log = logging.getLogger(__name__)

MAX_FAILED_STEPS = 3
"""In a row, with every chunk failing also by itself: then it is not a request that is broken."""

WARM_UP = (Trial(chunk=8), Trial(decodes=1, context=8))
"""In one block: the smallest cache there is."""


Results = Callable[[], list[ChunkResult]]
"""Waits for a step, and says what it brought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchedStep:
    chunks: list[ScheduledChunk]
    shape: StepShape
    online: StepShape
    """Without the background work in it."""
    started_s: float
    results: Results


class StepRunner(Protocol):
    """What the engine asks of engine.runner.Runner."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    @property
    def lookahead(self) -> int:
        """Steps that may be launched before the results of an earlier one are read: 0 on a CPU, 1 on a GPU."""
        ...

    def assume(self, chunks: list[ScheduledChunk]) -> None:
        """Before a made-up step: all that comes before its chunks counts as computed."""
        ...

    def launch(self, chunks: list[ScheduledChunk]) -> Results:
        """Starts the step; nothing of the sequences is read after it returns."""
        ...


class Engine:
    """cluster.request.Engine over a scheduler and a runner; one thread drives it."""

    def __init__(
        self,
        spec: EngineSpec,
        runner: StepRunner,
        text: TextCodec | None = None,
        predict_step_s: Callable[[StepShape], float] | None = None,
    ) -> None:
        self._spec = spec
        self._runner = runner
        self._text = text
        self._predict_step_s = predict_step_s
        self._pool = BlockPool(runner.num_blocks, spec.block_size)
        self._scheduler = Scheduler(
            self._pool,
            token_budget=spec.token_budget,
            max_sequences=spec.max_sequences,
            prefix_caching=spec.prefix_caching,
            background=BackgroundRoom(
                predict_step_s=self._expected_step_s if predict_step_s else None,
                alone_s=inf if spec.background_step_s is None else spec.background_step_s,
            ),
        )
        self._live: dict[str, LiveRequest] = {}
        self._launched: deque[LaunchedStep] = deque()
        self._read_s = 0.0
        self._aborted: list[TokenDelta] = []
        self._load: Load | None = None
        """As it is now; None once anything but an arrival has changed it."""
        self._num_arrivals = 0
        self._failed_steps = 0
        self._meter = StepMeter()
        self._process = psutil.Process()

    @property
    def has_work(self) -> bool:
        return bool(self._live or self._aborted)

    def add(self, request: GenerationRequest) -> Verdict:
        self._check(request)
        load = self._load or self.load()
        limit = most_requests(
            request.objective, max_sequences=self._spec.max_sequences, max_waiting=self._spec.max_waiting
        )
        num_background = load.background_sequences + load.background_waiting
        num_alike = num_background if request.objective == "background" else len(self._live) - num_background
        refused = refusal(load, request, num_requests=num_alike, max_requests=limit)
        if refused:
            return Verdict(admitted=False, reason=refused.reason, load=load, retry_after_s=refused.retry_after_s)
        sampling = request.sampling
        sequence = Sequence(
            request=request,
            token_ids=list(request.prompt_token_ids),
            num_prompt_tokens=len(request.prompt_token_ids),
            seed=random.getrandbits(63) if sampling.seed is None else sampling.seed,
            arrival=self._num_arrivals,
            arrived_s=time.monotonic(),
        )
        self._num_arrivals += 1
        self._meter.prompt_tokens += sequence.num_prompt_tokens
        detokenizer = StreamDetokenizer.for_request(self._text, sampling) if self._text and sampling.stop else None
        self._live[request.request_id] = LiveRequest(sequence=sequence, detokenizer=detokenizer)
        self._scheduler.add(sequence)
        self._load = with_waiting(load, sequence, self._pool, measured_at_s=time.time())
        return Verdict(admitted=True, reason="admitted", load=self._load)

    def abort(self, request_id: str) -> None:
        live = self._live.get(request_id)
        if live is not None:
            self._remove(live)
            self._aborted.append(live.delta(finish_reason="abort"))

    def step(self) -> list[TokenDelta]:
        """Schedule, launch, and say what each sequence got: with lookahead, of the step before, while this one runs."""
        deltas, self._aborted, self._load = self._aborted, [], None
        chunks = self._scheduler.schedule()
        if chunks:
            shape, started_s = step_shape(chunks), time.perf_counter()
            online = step_shape([chunk for chunk in chunks if not chunk.sequence.is_background])
            _end_queueing(chunks, now_s=time.monotonic())
            results = self._launch(chunks)
            step = LaunchedStep(chunks=chunks, shape=shape, online=online, started_s=started_s, results=results)
            self._launched.append(step)
            for chunk in chunks:
                self._scheduler.advance(chunk)
        while len(self._launched) > (self._runner.lookahead if chunks else 0):
            deltas += self._read(self._launched.popleft())
        return deltas

    def _read(self, step: LaunchedStep) -> list[TokenDelta]:
        results = step.results()
        self._record(step)
        taken = [self._take(chunk, result) for chunk, result in zip(step.chunks, results, strict=True)]
        return [delta for delta in taken if delta is not None]

    def _record(self, step: LaunchedStep) -> None:
        """A step launched while another ran began when that one ended."""
        now_s = time.perf_counter()
        step_s = now_s - max(step.started_s, self._read_s)
        self._read_s = now_s
        predicted_s = self._predict_step_s(step.shape) if self._predict_step_s else None
        self._meter.record(
            step.online, num_sequences=len(step.chunks), step_s=step_s, predicted_s=predicted_s, now_s=now_s
        )

    def _expected_step_s(self, shape: StepShape) -> float:
        assert self._predict_step_s is not None, "given to the scheduler only with it"
        return self._predict_step_s(shape) * self._meter.step_time_ratio.value

    def load(self) -> Load:
        now_s = time.perf_counter()
        meter = self._meter
        return Load(
            replica_id=self._spec.replica_id,
            variant=self._spec.variant.name,
            measured_at_s=time.time(),
            **queue_load(self._scheduler),
            prefill_tokens_per_s=meter.prefill_rate.per_second(now_s),
            decode_tokens_per_s=meter.decode_rate.per_second(now_s),
            step_time_ratio=meter.step_time_ratio.value,
            step_samples=meter.step_time_ratio.num_samples,
            preemptions=self._scheduler.num_preemptions,
            prefix_hit_tokens=self._scheduler.num_prefix_hit_tokens,
            prompt_tokens=meter.prompt_tokens,
            generated_tokens=meter.generated_tokens,
            steps=meter.steps,
            busy_s=meter.busy_s,
            step_sequences=meter.step_sequences,
            rss_bytes=self._process.memory_info().rss,
        )

    def _check(self, request: GenerationRequest) -> None:
        """ValueError for what no load would make valid."""
        prompt, sampling = request.prompt_token_ids, request.sampling
        limit = min(self._spec.max_context, self._pool.num_blocks * self._pool.block_size)
        if request.request_id in self._live:
            raise ValueError(f"request_id {request.request_id!r} is running already")
        if not prompt:
            raise ValueError("prompt: it holds no tokens")
        if sampling.max_tokens < 1:
            raise ValueError(f"max_tokens {sampling.max_tokens}: must be at least 1")
        if len(prompt) + sampling.max_tokens > limit:
            raise ValueError(
                f"prompt of {len(prompt)} tokens and max_tokens {sampling.max_tokens}: "
                f"together {len(prompt) + sampling.max_tokens}, the context is {limit} tokens"
            )
        for name, token_ids in (("prompt", prompt), ("logit_bias", sampling.logit_bias)):
            wrong = next((token for token in token_ids if not 0 <= token < self._runner.vocab_size), None)
            if wrong is not None:
                raise ValueError(f"{name}: token id {wrong} is outside the vocabulary of {self._runner.vocab_size}")
        if sampling.stop and self._text is None:
            raise ValueError("stop: this engine has no tokenizer to find stop strings with")

    def _launch(self, chunks: list[ScheduledChunk]) -> Results:
        """The step; if it fails, each chunk by itself, so that one request that cannot be computed ends alone."""
        try:
            results = self._runner.launch(chunks)
        except Exception:
            log.exception("a step of %d chunks failed; each is run by itself", len(chunks))
            alone = [self._run_alone(chunk) for chunk in chunks]
            if all(result.error for result in alone):
                self._failed_steps += 1
                if self._failed_steps == MAX_FAILED_STEPS:
                    raise
                return lambda: alone
            results = lambda: alone  # noqa: E731
        self._failed_steps = 0
        return results

    def _run_alone(self, chunk: ScheduledChunk) -> ChunkResult:
        try:
            return self._runner.launch([chunk])()[0]
        except Exception as error:
            return ChunkResult(token_id=None, error=f"{type(error).__name__}: {error}")

    def _take(self, chunk: ScheduledChunk, result: ChunkResult) -> TokenDelta | None:
        """Enters one chunk's result, and takes the request out when it ends with it. A sequence that ended while this
        step was on its way leaves a token that nobody wants."""
        live = self._live.get(chunk.sequence.request.request_id)
        if live is None or live.sequence is not chunk.sequence:
            return None
        if result.error is not None:
            self._remove(live)
            return live.delta(finish_reason="error", error=result.error)
        delta = live.take(chunk, result, self._runner.eos_token_ids)
        self._scheduler.publish(chunk)
        if delta is not None:
            self._meter.generated_tokens += 1
            if delta.finish_reason is not None:
                self._remove(live)
        return delta

    def _remove(self, live: LiveRequest) -> None:
        self._load = None
        self._scheduler.remove(live.sequence)
        del self._live[live.sequence.request.request_id]


def _end_queueing(chunks: list[ScheduledChunk], *, now_s: float) -> None:
    """For those whose first step this is; a sequence preempted later keeps what it waited at first."""
    for chunk in chunks:
        if chunk.sequence.queued_s is None:
            chunk.sequence.queued_s = now_s - chunk.sequence.arrived_s


def build_engine(spec: EngineSpec) -> Engine:
    """Loads the weights, allocates the cache, reads the tokenizer; seconds, and most of a replica's memory."""
    runner = build_runner(spec)
    # What a first step would load or compile, and whatever is wrong with it, belongs to the start.
    for trial in WARM_UP:
        runner.launch(trial.chunks(spec.block_size))()
    is_made_up = spec.load_format == "dummy"
    return Engine(spec, runner, None if is_made_up else TextCodec(spec.checkpoint), _step_predictor(spec))


def build_runner(spec: EngineSpec) -> StepRunner:
    # torch comes with the runner; who only drives an Engine need not load it.
    if spec.device == "cuda":
        from engine.gpu.startup import start_runner

        return start_runner(spec)
    from engine.runner import Runner

    return Runner(spec)


def _step_predictor(spec: EngineSpec) -> Callable[[StepShape], float] | None:
    return CostModel.for_engine(spec).step_s if spec.accelerator is not None else None
