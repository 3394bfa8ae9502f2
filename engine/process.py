"""The engine in a process of its own, seen from its parent's event loop; this side knows no torch and steps nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import engine
from cluster.engine_spec import EngineSpec
from cluster.load import Load
from cluster.request import GenerationRequest, Verdict
from engine.wire import (
    Abort,
    Answer,
    DeltaBuffer,
    Failed,
    FrameReader,
    Ready,
    Start,
    StepMessage,
    Stop,
    Submit,
    ToChild,
    ToParent,
    decode_for_parent,
    frame,
)

STOP_TIMEOUT_S = 5.0
"""A step takes half a second at most; past this the process is killed."""

PYTHON_MODULE = (sys.executable, "-P", "-m")
"""-P: a file of the user's that is named like one of our packages, in the folder they stand in, is not imported."""

REAP_TIMEOUT_S = 2.0
"""Between the end of its socket and the end of a process: the interpreter's own shutdown."""


class EngineDied(Exception):  # noqa: N818  (it names what happened, and the callers' sentence reads better)
    """The engine process could not start, or ended by itself."""


class EngineFailed(EngineDied):
    """It has said why: started again it would most likely say it again. A kill says nothing."""


class EngineProcess:
    """One engine process and its single reader.

    `start` forks from the calling thread, and the child asks the kernel to die with it: call it from a thread that
    lives as long as the engine shall, such as the event loop's.
    """

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.load: Load | None = None
        self._process = process
        self._unsent: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None
        self._answers: dict[str, asyncio.Future[Verdict]] = {}
        self._deltas = DeltaBuffer()
        self._news = asyncio.Event()
        self._started = asyncio.Event()
        self._ended = asyncio.Event()
        self._stopping = False
        self._failure: str | None = None
        self._has_explained = False
        self._tasks = {asyncio.create_task(self._connect(sock))}

    @classmethod
    def start(cls, spec: EngineSpec) -> EngineProcess:
        """Returns at once; `ready` tells when it serves."""
        ours, childs = socket.socketpair()
        ours.setblocking(False)
        with childs:
            process = subprocess.Popen(
                [*PYTHON_MODULE, "engine.process_main", str(childs.fileno()), str(os.getpid())],
                pass_fds=[childs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints belongs to the log
                env=child_environment(spec.num_threads),
                start_new_session=True,  # a signal to the parent's group must let the parent drain
            )
        client = cls(process, ours)
        client._send(Start(spec))
        return client

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None and not self._ended.is_set()

    async def ready(self) -> Load:
        """Waits until the engine serves."""
        await self._started.wait()
        if self.load is None or self._ended.is_set():
            raise self._death()
        return self.load

    async def submit(self, request: GenerationRequest) -> Verdict:
        """The engine's answer, given between two steps; ValueError for a request that it could never serve."""
        if self._ended.is_set():
            raise self._death()
        if request.request_id in self._answers:
            raise ValueError(f"request_id {request.request_id!r} is being submitted already")
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._answers[request.request_id] = answer
        self._send(Submit(request))
        try:
            return await answer
        except asyncio.CancelledError:
            self.abort(request.request_id)
            raise
        finally:
            self._answers.pop(request.request_id, None)

    def abort(self, request_id: str) -> None:
        """The request's last delta says "abort", unless it ended before; nothing happens for an unknown one."""
        if not self._ended.is_set():
            self._send(Abort(request_id))

    async def messages(self) -> AsyncIterator[StepMessage]:
        """What the steps bring, for one reader; ends after `stop`, raises EngineDied if the engine ended by itself."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self.load is not None:
                yield StepMessage(deltas=self._deltas.take(), load=self.load)
            if self._ended.is_set():
                if self._stopping:
                    return
                raise self._death()

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ends the process, and with it what still runs in it: drain before."""
        self._stopping = True
        if not self._ended.is_set():
            self._send(Stop())
        try:
            await asyncio.wait_for(self._ended.wait(), timeout_s)
        except TimeoutError:
            self._process.kill()
            await self._ended.wait()

    def _send(self, message: ToChild) -> None:
        if self._transport is None:
            self._unsent.append(frame(message))
        else:
            self._transport.write(frame(message))

    async def _connect(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(lambda: _Receiver(self), sock=sock)
        self._transport.writelines(self._unsent)
        self._unsent.clear()

    def receive(self, message: ToParent) -> None:
        """For the receiver of the socket's bytes."""
        match message:
            case StepMessage(deltas=deltas, load=load):
                self._deltas.add(deltas)
                self.load = load
                self._news.set()
            case Answer(request_id=request_id):
                self._answer(request_id, message)
            case Ready(load=load):
                self.load = load
                self._started.set()
            case Failed(reason=reason):
                self._failure, self._has_explained = reason, True

    def _answer(self, request_id: str, answer: Answer) -> None:
        waiter = self._answers.get(request_id)
        if waiter is None or waiter.done():
            return
        if answer.verdict is not None:
            self.load = answer.verdict.load
            waiter.set_result(answer.verdict)
        else:
            waiter.set_exception(ValueError(answer.invalid))

    def disconnected(self) -> None:
        """For the receiver: the child has closed its end, or is gone."""
        self._tasks.add(asyncio.create_task(self._reap()))

    async def _reap(self) -> None:
        try:
            status = await asyncio.to_thread(self._process.wait, REAP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = await asyncio.to_thread(self._process.wait)
        if self._failure is None:
            ending = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            self._failure = f"the engine process {self.pid} ended with {ending}"
        self._ended.set()
        self._started.set()
        self._news.set()
        for waiter in self._answers.values():
            if not waiter.done():
                waiter.set_exception(self._death())

    def _death(self) -> EngineDied:
        kind = EngineFailed if self._has_explained else EngineDied
        return kind(self._failure or f"the engine process {self.pid} has ended")


class _Receiver(asyncio.Protocol):
    """The socket's bytes as messages; the event loop wakes it once for whatever a step has sent."""

    def __init__(self, client: EngineProcess) -> None:
        self._client = client
        self._frames = FrameReader()

    def data_received(self, data: bytes) -> None:
        for payload in self._frames.feed(data):
            self._client.receive(decode_for_parent(payload))

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.disconnected()


def child_environment(num_threads: int) -> dict[str, str]:
    """Every library's own pool gets the engine's threads and no more, and finds the packages this process runs."""
    threads = str(num_threads)
    root = str(Path(engine.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "NUMBA_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(paths),
    }
