"""One engine kept full by many callers at once: their rows share its queue; it knows no files, no text and no Ray."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from cluster.request import Engine, FinishReason, GenerationRequest, TokenDelta


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one request."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Call:
    """The requests of one caller, who waits for the last of them."""

    requests: list[GenerationRequest]
    outcomes: dict[str, Outcome]
    num_open: int
    done: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None

    def finish(self, outcome: Outcome, reason: FinishReason, error: str | None) -> None:
        outcome.finish_reason, outcome.error = reason, error
        self.num_open -= 1
        if not self.num_open:
            self.done.set()


class EngineFeeder:
    """Steps an engine in a thread of its own for whoever calls `generate`, from any number of threads.

    A slice of rows alone would leave the engine ever emptier as its rows end; with the next slice queued behind it
    the engine stays full until the last one. The engine is built in the thread that steps it, because the number of
    threads of numba and torch belongs to the thread that set it.
    """

    def __init__(self, build: Callable[[], Engine]) -> None:
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._waiting: deque[tuple[_Call, GenerationRequest]] = deque()
        self._running: dict[str, _Call] = {}
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        threading.Thread(target=self._run, args=(build,), name="engine", daemon=True).start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def generate(self, requests: list[GenerationRequest]) -> list[Outcome]:
        """The outcomes in the order of the requests, whose ids are unique among all callers; blocks until the last."""
        if not requests:
            return []
        outcomes = {request.request_id: Outcome() for request in requests}
        call = _Call(requests=requests, outcomes=outcomes, num_open=len(requests))
        self._calls.put(call)
        while not call.done.wait(timeout=1.0):
            if self._failure is not None:  # the engine thread ended before it took this call
                raise self._failure
        if call.failure is not None:
            raise call.failure
        return list(outcomes.values())

    def _run(self, build: Callable[[], Engine]) -> None:
        try:
            engine = build()
            self._ready.set()
            while True:
                self._take_calls(wait=not engine.has_work and not self._waiting)
                self._admit(engine)
                for delta in engine.step() if engine.has_work else ():
                    self._deliver(delta)
        except BaseException as failure:  # a bug: told to every caller, who raises it in a thread that Ray watches
            self._failure = failure
            for call in {*self._running.values(), *(call for call, _ in self._waiting)}:
                call.failure = failure
                call.done.set()
            self._ready.set()

    def _take_calls(self, *, wait: bool) -> None:
        while wait or not self._calls.empty():
            call = self._calls.get()
            self._waiting.extend((call, request) for request in call.requests)
            wait = False

    def _admit(self, engine: Engine) -> None:
        """Gives the engine what it takes; what it refuses for now waits for room, in order."""
        while self._waiting:
            call, request = self._waiting[0]
            outcome = call.outcomes[request.request_id]
            try:
                verdict = engine.add(request)
            except ValueError as error:  # no load would make this request valid: an error of its row
                call.finish(outcome, "error", str(error))
            else:
                if not verdict.admitted and engine.has_work:
                    return
                if verdict.admitted:
                    self._running[request.request_id] = call
                else:
                    call.finish(outcome, "error", f"refused by an idle engine: {verdict.reason}")
            self._waiting.popleft()

    def _deliver(self, delta: TokenDelta) -> None:
        call = self._running[delta.request_id]
        outcome = call.outcomes[delta.request_id]
        outcome.token_ids += delta.token_ids
        if delta.finish_reason is not None:
            del self._running[delta.request_id]
            call.finish(outcome, delta.finish_reason, delta.error)
