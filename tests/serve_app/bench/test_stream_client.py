"""Events as they come over a connection: in any pieces, and with texts that hold what Unicode calls line ends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from serve_app.bench.stream_client import events
from serve_app.streaming import DONE, event

TEXT = "a\u2028b\u2029c\x85d\x0be\x1cf\r\ng"


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_events_come_whole_from_pieces_of_any_size(size: int) -> None:
    raw = b"data: " + json.dumps({"text": TEXT}, ensure_ascii=False).encode() + b"\n\n"
    whole = raw + event({"text": TEXT}) + DONE

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(whole), size):
            yield whole[start : start + size]

    assert [found async for found in events(httpx.Response(200, content=pieces()))] == [{"text": TEXT}] * 2


def test_an_event_is_one_line_however_a_client_splits() -> None:
    lines = event({"text": TEXT}).decode().splitlines()
    assert [json.loads(line.removeprefix("data: ")) for line in lines if line] == [{"text": TEXT}]
