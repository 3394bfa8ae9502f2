"""An answer as server-sent events, and its end whatever way it comes; it knows no endpoint's shape."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from typing import Any

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.answer import Answer
from serve_app.errors import ApiError
from serve_app.formats import Format

DONE = b"data: [DONE]\n\n"
LINE_ENDS = "\x85\u2028\u2029"


class EventStream(StreamingResponse):
    """Closes `ends` when the client has everything or has gone; a generator that never began runs no `finally`."""

    def __init__(self, events: AsyncIterator[bytes], headers: Mapping[str, str], ends: ExitStack) -> None:
        # no-transform and the X- header keep proxies from gathering events into larger pieces.
        fixed = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers={**headers, **fixed})
        self._ends = ends

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._ends:
            await super().__call__(scope, receive, send)


async def events(answer: Answer, shape: Format, *, include_usage: bool) -> AsyncIterator[bytes]:
    """The first chunk says who serves and why; a failure is an event too, never a silent end."""
    served: dict[str, Any] | None = {"quantfleet": answer.served}
    opened: set[int] = set()
    try:
        async for piece in answer.pieces():
            chunks = []
            if piece.index not in opened:
                opened.add(piece.index)
                chunks.append(shape.opening(piece.index))
            if not piece.is_empty:
                chunks.append(shape.chunk(piece))
            for chunk in chunks:
                if chunk is not None:
                    yield event(chunk | (served or {}))
                    served = None
        if include_usage:
            yield event(shape.usage_chunk(answer.usage()))
    except ApiError as error:
        yield event(error.body())
    yield DONE


def event(data: Mapping[str, Any]) -> bytes:
    """One line for every client: JSON leaves three of Unicode's line ends as they are, and httpx splits at all."""
    line = msgspec.json.encode(data)
    for character in LINE_ENDS:
        line = line.replace(character.encode(), f"\\u{ord(character):04x}".encode())
    return b"data: " + line + b"\n\n"
