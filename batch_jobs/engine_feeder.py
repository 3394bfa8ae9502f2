"""One engine process kept full by many callers at once, and begun again when it dies; it knows no files, text or Ray.

Rows that were in an engine when it died are tried again, each time in smaller company: so one that kills its engine
ends up alone, and is an error of its own after MAX_ATTEMPTS, while the others come through.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from cluster.engine_spec import EngineSpec
from cluster.load import Load
from cluster.request import FinishReason, GenerationRequest, TokenDelta, TokenLogprob, Verdict
from engine.process import EngineDied, EngineFailed, EngineProcess
from engine.wire import StepMessage

MAX_ATTEMPTS = 4
COMPANY_SHRINKS = 8
"""So many times fewer rows run together after each death: 256, 32, 4, 1."""
MAX_FAILED_STARTS = 3
"""In a row: an engine that ran before may find its memory not freed yet."""
RESTART_DELAY_S = 1.0
AHEAD = 2
"""Rows in the engine for each that runs: a place that becomes free is taken in the next step."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Where the request asks for them."""
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Call:
    """The requests of one caller, who waits for the last of them."""

    outcomes: list[Outcome]
    num_open: int
    done: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None

    def fail(self, failure: BaseException) -> None:
        self.failure = failure
        self.done.set()


@dataclass(slots=True, kw_only=True, eq=False)
class _Row:
    call: _Call
    request: GenerationRequest
    outcome: Outcome
    num_deaths: int = 0

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        self.outcome.finish_reason, self.outcome.error = reason, error
        self.call.num_open -= 1
        if not self.call.num_open:
            self.call.done.set()


class RowEngine(Protocol):
    """What runs rows: engine.process.EngineProcess is one, and its errors are these."""

    load: Load | None

    async def ready(self) -> Load: ...

    async def submit(self, request: GenerationRequest) -> Verdict: ...

    def messages(self) -> AsyncIterator[StepMessage]: ...

    async def stop(self) -> None: ...


class EngineFeeder:
    """Runs an engine from a thread of its own, for whoever calls `generate` from any number of threads.

    A slice of rows alone would leave the engine ever emptier as its rows end; with the next slice queued behind it
    the engine stays full until the last one. EngineDied from the constructor where the engine cannot start: at once
    where it says why, else (a kill) after as many tries as later.
    """

    def __init__(self, spec: EngineSpec, start: Callable[[EngineSpec], RowEngine] | None = None) -> None:
        """`start`: of the engine, from the feeder's event loop, where it is no process beside this one;
        `spec.max_sequences` rows run there at once."""
        self._spec = spec
        self._start = start or EngineProcess.start
        self._loop = asyncio.new_event_loop()
        self._waiting: deque[_Row] = deque()
        self._running: dict[str, _Row] = {}
        self._news = asyncio.Event()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._is_closing = False
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._run(),), name="feeder", daemon=True
        )
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def generate(self, requests: list[GenerationRequest]) -> list[Outcome]:
        """The outcomes in the order of the requests, whose ids are unique among all callers; blocks until the last.

        EngineDied where the engine does not come back.
        """
        if not requests:
            return []
        call = _Call(outcomes=[Outcome() for _ in requests], num_open=len(requests))
        rows = [_Row(call=call, request=one, outcome=its) for one, its in zip(requests, call.outcomes, strict=True)]
        self._loop.call_soon_threadsafe(self._take, rows)
        while not call.done.wait(timeout=1.0):
            if self._failure is not None:  # the feeder ended before it took this call
                raise self._failure
        if call.failure is not None:
            raise call.failure
        return call.outcomes

    def close(self) -> None:
        """Ends the engine, and whatever still runs in it."""
        self._is_closing = True
        self._loop.call_soon_threadsafe(self._news.set)
        self._thread.join()

    def _take(self, rows: Iterable[_Row]) -> None:
        """Of a slice the rows that may be longest first: the last slice then ends without one that runs alone."""
        self._waiting.extend(sorted(rows, key=lambda row: -row.request.sampling.max_tokens))
        self._news.set()

    async def _run(self) -> None:
        try:
            failed_starts = 0
            while not self._is_closing:
                engine = self._start(self._spec)
                try:
                    await engine.ready()
                    failed_starts = 0
                    self._ready.set()
                    await self._serve(engine)
                except EngineDied as death:
                    self._after_death(str(death))
                    failed_starts += engine.load is None
                    is_hopeless = isinstance(death, EngineFailed) and not self._ready.is_set()
                    if failed_starts > MAX_FAILED_STARTS or is_hopeless:
                        raise
                    await asyncio.sleep(RESTART_DELAY_S)
            self._end(EngineDied("the engine was closed"))
        except BaseException as failure:  # told to every caller, who raises it in a thread that Ray watches
            self._end(failure)

    def _end(self, failure: BaseException) -> None:
        self._failure = failure
        for row in [*self._running.values(), *self._waiting]:
            row.call.fail(failure)
        self._ready.set()

    async def _serve(self, engine: RowEngine) -> None:
        """Until the engine dies, or is to end."""
        reading = asyncio.create_task(self._read(engine))
        try:
            while not reading.done() and not self._is_closing:
                self._news.clear()
                await self._fill(engine)
                await self._news.wait()
            if not self._is_closing:
                await reading
        finally:
            reading.cancel()
        await engine.stop()

    async def _read(self, engine: RowEngine) -> None:
        try:
            async for message in engine.messages():
                for delta in message.deltas:
                    self._deliver(delta)
                self._news.set()
        finally:
            self._news.set()

    async def _fill(self, engine: RowEngine) -> None:
        """As many rows as may run together; what the engine refuses for now waits for its next step, in order."""
        rows: list[_Row] = []
        company = min(map(self._company, self._running.values()), default=AHEAD * self._spec.max_sequences)
        while self._waiting and len(self._running) < min(company, self._company(self._waiting[0])):
            row = self._waiting.popleft()
            company = min(company, self._company(row))
            self._running[row.request.request_id] = row
            rows.append(row)
        # All at once: an engine answers between two steps, and one by one each row would wait for a step of its own.
        answers = await asyncio.gather(*(engine.submit(row.request) for row in rows), return_exceptions=True)
        for row, answer in reversed(list(zip(rows, answers, strict=True))):
            self._answered(row, answer)

    def _company(self, row: _Row) -> int:
        """Rows that may run with it, itself included, by its deaths."""
        most = self._spec.max_sequences
        return AHEAD * most if not row.num_deaths else max(1, most // COMPANY_SHRINKS**row.num_deaths)

    def _answered(self, row: _Row, answer: Verdict | BaseException) -> None:
        if isinstance(answer, ValueError):  # no load would make this request valid
            del self._running[row.request.request_id]
            row.finish("error", str(answer))
        elif isinstance(answer, Verdict) and not answer.admitted:
            del self._running[row.request.request_id]
            if self._running:
                self._waiting.appendleft(row)
            else:
                row.finish("error", f"refused by an idle engine: {answer.reason}")
        elif isinstance(answer, BaseException) and not isinstance(answer, EngineDied):  # of which the reader tells
            raise answer

    def _deliver(self, delta: TokenDelta) -> None:
        row = self._running[delta.request_id]
        row.outcome.token_ids += delta.token_ids
        row.outcome.logprobs += delta.logprobs or []
        if delta.finish_reason is not None:
            del self._running[delta.request_id]
            row.finish(delta.finish_reason, delta.error)

    def _after_death(self, reason: str) -> None:
        for row in reversed(self._running.values()):
            row.num_deaths += 1
            row.outcome.token_ids.clear()
            row.outcome.logprobs.clear()
            if row.num_deaths < MAX_ATTEMPTS:
                self._waiting.appendleft(row)
            else:
                row.finish("error", f"its engine ended {row.num_deaths} times with it ({reason})")
        self._running.clear()
