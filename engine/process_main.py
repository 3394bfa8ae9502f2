"""The engine process: one thread that reads requests, steps, and writes what the steps bring; it knows no HTTP."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import select
import signal
import socket
import sys
import time

from cluster.request import Engine
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
    decode_for_child,
    frame,
)

HEARTBEAT_S = 1.0
"""An idle engine says so once a second: the routers drop a replica whose Load grows old."""

RECEIVE_BYTES = 1 << 18
PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


class Channel:
    """The parent's socket: never blocks a step, and joins deltas that the parent is too slow to read."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = FrameReader()
        self._unsent = bytearray()
        self._step: StepMessage | None = None
        self._deltas = DeltaBuffer()

    def receive(self, timeout_s: float) -> list[ToChild]:
        """What has come, waiting at most so long for something; ConnectionResetError when the parent is gone."""
        events = select.POLLIN | (select.POLLOUT if self._unsent else 0)
        poll = select.poll()
        poll.register(self._sock, events)
        ready = poll.poll(timeout_s * 1000)
        self.flush()
        if not ready or not ready[0][1] & ~select.POLLOUT:
            return []
        data = self._sock.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the parent has closed its end")
        return [decode_for_child(payload) for payload in self._frames.feed(data)]

    def send(self, message: ToParent) -> None:
        self.queue(message)
        self.flush()

    def queue(self, message: ToParent) -> None:
        """For the next flush. A step's message waits for the socket, so that it can be joined with later ones; the
        others do not."""
        if isinstance(message, StepMessage):
            self._deltas.add(message.deltas)
            self._step = message
        else:
            self._unsent += frame(message)

    def flush(self) -> None:
        while self._unsent or self._step is not None:
            if self._step is not None and not self._unsent:
                self._unsent += frame(StepMessage(deltas=self._deltas.take(), load=self._step.load))
                self._step = None
            try:
                sent = self._sock.send(self._unsent, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            del self._unsent[:sent]

    def last_words(self, message: ToParent) -> None:
        """Waits until all is written; the process ends after it."""
        self._sock.sendall(self._unsent + frame(message))


class EngineLoop:
    """Between two steps it does what the parent asks; without work it sleeps until the parent speaks."""

    def __init__(self, channel: Channel, engine: Engine) -> None:
        self._channel = channel
        self._engine = engine
        self._stopped = False

    def run(self, early: list[ToChild]) -> None:
        """Until told to stop; `early` came while the engine was being built."""
        self._channel.send(Ready(self._engine.load()))
        for message in early:
            self._handle(message)
        while not self._stopped:
            messages = self._channel.receive(0.0 if self._engine.has_work else HEARTBEAT_S)
            for message in messages:
                self._handle(message)
            self._channel.flush()  # the answers to all of them in one write: a batch job sends a hundred at once
            if self._engine.has_work:
                deltas = self._engine.step()
                self._channel.send(StepMessage(deltas=deltas, load=self._engine.load()))
            elif not messages:
                self._channel.send(StepMessage(deltas=[], load=self._engine.load()))

    def _handle(self, message: ToChild) -> None:
        match message:
            case Submit(request=request):
                try:
                    answer = Answer(request_id=request.request_id, verdict=self._engine.add(request))
                except ValueError as error:
                    answer = Answer(request_id=request.request_id, invalid=str(error))
                self._channel.queue(answer)
            case Abort(request_id=request_id):
                self._engine.abort(request_id)
            case Stop():
                self._stopped = True


def main(file_descriptor: int, parent_pid: int) -> int:
    _die_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s engine[%(process)d] %(message)s")
    channel = Channel(socket.socket(fileno=file_descriptor))
    try:
        start, *early = _first_messages(channel)
        assert isinstance(start, Start), f"{type(start).__name__} before Start"
        # torch and numba come in here: whatever is wrong with them is told to the parent like any other failure.
        from engine.engine import build_engine

        started_s = time.perf_counter()
        engine = build_engine(start.spec)
        log.info("%s ready after %.2f s", start.spec.replica_id, time.perf_counter() - started_s)
        gc.freeze()  # looking through the libraries' 256,000 objects again would stop a step for 0.1 s
        EngineLoop(channel, engine).run(early)
    except (ConnectionResetError, BrokenPipeError):
        log.info("the parent is gone")
    except Exception as error:
        log.exception("the engine ends")
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            channel.last_words(Failed(reason))
        return 1
    return 0


def _first_messages(channel: Channel) -> list[ToChild]:
    while True:
        messages = channel.receive(HEARTBEAT_S)
        if messages:
            return messages


def _die_with_parent(parent_pid: int) -> None:
    """The closed socket tells as well, but only between two steps; a kernel signal also ends one that hangs."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        sys.exit(0)


if __name__ == "__main__":
    status = main(int(sys.argv[1]), int(sys.argv[2]))
    logging.shutdown()
    os._exit(status)  # nothing is left to save, and taking torch down in order costs a drain a second
