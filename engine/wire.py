"""The messages between an engine process and its parent, as length-prefixed msgpack; it opens no socket."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import msgspec

from cluster.engine_spec import EngineSpec
from cluster.load import Load
from cluster.request import GenerationRequest, TokenDelta, Verdict

_LENGTH = struct.Struct(">I")


class Start(msgspec.Struct, tag=True, frozen=True):
    spec: EngineSpec


class Submit(msgspec.Struct, tag=True, frozen=True):
    request: GenerationRequest


class Abort(msgspec.Struct, tag=True, frozen=True):
    request_id: str


class Stop(msgspec.Struct, tag=True, frozen=True):
    pass


class Ready(msgspec.Struct, tag=True, frozen=True):
    load: Load


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The engine cannot start, or cannot go on."""

    reason: str


class Answer(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """To a Submit: a verdict, or why no load would make the request valid."""

    request_id: str
    verdict: Verdict | None = None
    invalid: str | None = None


class StepMessage(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What one step, or several when the reader lags, added to all requests. Without deltas it brings a fresh Load."""

    deltas: list[TokenDelta]
    load: Load


ToChild = Start | Submit | Abort | Stop
ToParent = Ready | Failed | Answer | StepMessage

_encoder = msgspec.msgpack.Encoder()
decode_for_child = msgspec.msgpack.Decoder(ToChild).decode
decode_for_parent = msgspec.msgpack.Decoder(ToParent).decode


def frame(message: ToChild | ToParent) -> bytes:
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into the payloads of its frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(self._buffer, start)[0]
            if end > len(self._buffer):
                break
            yield bytes(self._buffer[start + _LENGTH.size : end])
            start = end
        del self._buffer[:start]


class DeltaBuffer:
    """Deltas that wait for their reader, one per request: a later one is appended to what waits of the same request."""

    def __init__(self) -> None:
        self._waiting: dict[str, TokenDelta] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, deltas: Iterable[TokenDelta]) -> None:
        for delta in deltas:
            earlier = self._waiting.get(delta.request_id)
            self._waiting[delta.request_id] = delta if earlier is None else joined(earlier, delta)

    def take(self) -> list[TokenDelta]:
        deltas = list(self._waiting.values())
        self._waiting.clear()
        return deltas


def joined(earlier: TokenDelta, later: TokenDelta) -> TokenDelta:
    """Two deltas of one request as one."""
    logprobs = [*(earlier.logprobs or []), *(later.logprobs or [])]
    return TokenDelta(
        request_id=earlier.request_id,
        token_ids=earlier.token_ids + later.token_ids,
        logprobs=logprobs or None,
        prompt_logprobs=earlier.prompt_logprobs or later.prompt_logprobs,
        cached_tokens=earlier.cached_tokens or later.cached_tokens,
        queued_s=later.queued_s if earlier.queued_s is None else earlier.queued_s,
        prefill_s=later.prefill_s if earlier.prefill_s is None else earlier.prefill_s,
        finish_reason=later.finish_reason,
        error=later.error,
    )
