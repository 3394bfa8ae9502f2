"""The engine process's loop over a real socket, with an engine that proves the block tables, in this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import NoReturn

import pytest

from cluster.engine_spec import EngineSpec
from cluster.request import GenerationRequest, SamplingParams
from cluster.variants import Variant
from engine.engine import Engine
from engine.process_main import Channel, EngineLoop
from engine.wire import (
    Abort,
    Answer,
    DeltaBuffer,
    FrameReader,
    Ready,
    StepMessage,
    Stop,
    Submit,
    ToChild,
    ToParent,
    decode_for_parent,
    frame,
)
from tests.engine.paged_hash_runner import PagedHashRunner, continuation

SPEC = EngineSpec(
    replica_id="bf16-0", checkpoint="", variant=Variant(name="bf16"), kv_capacity_tokens=40_000, max_context=30_000
)


class Parent:
    """The other end, in plain blocking calls."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = FrameReader()
        self._messages: list[ToParent] = []

    def send(self, *messages: ToChild) -> None:
        self._sock.sendall(b"".join(map(frame, messages)))

    def receive(self) -> ToParent:
        while not self._messages:
            data = self._sock.recv(1 << 16)
            assert data, "the loop has closed its end"
            self._messages += [decode_for_parent(payload) for payload in self._frames.feed(data)]
        return self._messages.pop(0)

    def receive_all(self) -> NoReturn:
        while True:
            self.receive()


@pytest.fixture
def parent() -> Iterator[Parent]:
    ours, childs = socket.socketpair()
    engine = Engine(SPEC, PagedHashRunner(SPEC.kv_capacity_tokens // 16, 16))
    thread = threading.Thread(target=run_until_closed, args=(childs, engine))
    thread.start()
    ours.settimeout(20)
    parent = Parent(ours)
    assert isinstance(parent.receive(), Ready)
    yield parent
    ours.close()
    thread.join(timeout=20)
    assert not thread.is_alive()


def run_until_closed(sock: socket.socket, engine: Engine) -> None:
    try:
        with sock:
            EngineLoop(Channel(sock), engine).run([])
    except (ConnectionResetError, BrokenPipeError):
        pass


def submit(request_id: str, prompt: list[int], max_tokens: int) -> Submit:
    return Submit(
        GenerationRequest(
            request_id=request_id, prompt_token_ids=prompt, sampling=SamplingParams(max_tokens=max_tokens)
        )
    )


def test_a_request_gets_a_verdict_then_a_message_a_step(parent: Parent) -> None:
    parent.send(submit("a", [1, 2, 3], 4))
    answer = parent.receive()
    assert isinstance(answer, Answer)
    assert answer.verdict is not None
    assert answer.verdict.admitted
    tokens: list[int] = []
    while len(tokens) < 4:
        message = parent.receive()
        assert isinstance(message, StepMessage)
        tokens += [token for delta in message.deltas for token in delta.token_ids]
    assert tokens == continuation([1, 2, 3], 4)


def test_an_impossible_request_is_told_why(parent: Parent) -> None:
    parent.send(submit("a", [], 4))
    answer = parent.receive()
    assert isinstance(answer, Answer)
    assert answer.invalid == "prompt: it holds no tokens"


def test_an_abort_is_the_last_word_on_a_request(parent: Parent) -> None:
    parent.send(submit("a", [1], 20_000))
    parent.receive()
    parent.send(Abort("a"), Abort("unknown"))
    reasons: list[str] = []
    while not reasons:
        message = parent.receive()
        assert isinstance(message, StepMessage)
        reasons = [delta.finish_reason for delta in message.deltas if delta.finish_reason]
    assert reasons == ["abort"]
    assert message.load.kv_tokens_used == 0


def test_an_idle_engine_tells_its_load(parent: Parent) -> None:
    first, second = parent.receive(), parent.receive()
    assert isinstance(first, StepMessage)
    assert isinstance(second, StepMessage)
    assert first.deltas == []
    assert 0.8 < second.load.measured_at_s - first.load.measured_at_s < 2


def test_stop_ends_the_loop_with_requests_running(parent: Parent) -> None:
    parent.send(submit("a", [1], 20_000), Stop())
    with pytest.raises(AssertionError, match="closed its end"):
        parent.receive_all()


def test_a_parent_that_does_not_read_stalls_nothing_and_loses_nothing() -> None:
    """Messages of many steps, into a socket that takes a few: what waits is joined."""
    ours, childs = socket.socketpair()
    childs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    engine = Engine(SPEC, PagedHashRunner(SPEC.kv_capacity_tokens // 16, 16))
    channel = Channel(childs)
    num_tokens = 300
    engine.add(submit("a", [1, 2, 3], num_tokens).request)
    while engine.has_work:
        channel.send(StepMessage(deltas=engine.step(), load=engine.load()))
    parent = Parent(ours)
    ours.settimeout(0.05)
    received = DeltaBuffer()
    num_messages = 0
    while True:
        channel.flush()
        try:
            message = parent.receive()
        except TimeoutError:
            break
        assert isinstance(message, StepMessage)
        received.add(message.deltas)
        num_messages += 1
    (delta,) = received.take()
    assert delta.token_ids == continuation([1, 2, 3], num_tokens)
    assert delta.finish_reason == "length"
    assert num_messages < num_tokens / 4
    ours.close()
    childs.close()
