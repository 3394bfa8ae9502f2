"""Reads a request's body up to a limit; it knows nothing of what the body says."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from serve_app.errors import ApiError, body_too_large

DISCARD_FACTOR = 16
"""Of a body that is too large so many limits are read and thrown away: a client that is still sending when the
connection closes sees a broken pipe, not the answer."""


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """ApiError 413 for a body beyond the limit, whatever its Content-Length says."""
    try:
        return await _read(request, limit_bytes)
    except ClientDisconnect:
        raise ApiError(400, "The connection closed before the body was complete") from None


async def _read(request: Request, limit_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    too_large = declared.isdigit() and int(declared) > limit_bytes
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        too_large = too_large or size > limit_bytes
        if size > DISCARD_FACTOR * limit_bytes:
            break
        if too_large:
            chunks.clear()
        else:
            chunks.append(chunk)
    if too_large:
        raise body_too_large(limit_bytes)
    return b"".join(chunks)
