"""The routes of OpenAI's files and batches: each caller sees its own and nothing else; it runs no batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse
from starlette.responses import Response

from cluster.config import BatchesSection
from serve_app.batches.batch_folder import BatchFolder, BatchStore
from serve_app.batches.bodies import BatchBody, BatchQuery, FileQuery, parsed
from serve_app.batches.file_store import FileRecord
from serve_app.batches.ids import BATCH_PREFIX, FILE_PREFIX, Page, list_object, new_id
from serve_app.batches.record import WINDOW_S, BatchRequest
from serve_app.batches.shelf import Shelf, Shelves
from serve_app.batches.upload import discard, receive_file
from serve_app.errors import ApiError, bad_parameter
from serve_app.http_body import read_body

MAX_BODY_BYTES = 64 * 2**10
"""Of a batch's creation: 16 metadata of at most 576 letters, and ids."""
DAY_S = 24 * 3600


class Gate(Protocol):
    """Who asks; ApiError 401, 429, 503."""

    def caller(self, request: Request) -> str: ...

    def entered(self, request: Request) -> AbstractContextManager[str]:
        """One of the caller's requests in flight; none is taken while the server ends."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRoutes:
    shelves: Shelves
    limits: BatchesSection
    wake: Callable[[], None]
    """Something is there to be worked on."""

    def mount(self, api: FastAPI, gate: Gate) -> None:
        files, batches = FileRoutes(routes=self, gate=gate), BatchJobRoutes(routes=self, gate=gate)
        upload_form = {
            "type": "object",
            "properties": {"purpose": {"const": "batch"}, "file": {"type": "string", "format": "binary"}},
            "required": ["purpose", "file"],
        }
        for method, path, answer, media, schema in (
            ("POST", "/v1/files", files.upload, "multipart/form-data", upload_form),
            ("GET", "/v1/files", files.list, None, None),
            ("GET", "/v1/files/{file_id}", files.get, None, None),
            ("GET", "/v1/files/{file_id}/content", files.content, None, None),
            ("DELETE", "/v1/files/{file_id}", files.delete, None, None),
            ("POST", "/v1/batches", batches.create, "application/json", BatchBody.model_json_schema()),
            ("GET", "/v1/batches", batches.list, None, None),
            ("GET", "/v1/batches/{batch_id}", batches.get, None, None),
            ("POST", "/v1/batches/{batch_id}/cancel", batches.cancel, None, None),
        ):
            extra = None if media is None else {"requestBody": {"content": {media: {"schema": schema}}}}
            api.add_api_route(path, answer, methods=[method], openapi_extra=extra, response_model=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRoutes:
    routes: BatchRoutes
    gate: Gate

    async def upload(self, request: Request) -> Response:
        """A file of purpose `batch`; others are not taken."""
        with ExitStack() as ends:
            try:
                caller = ends.enter_context(self.gate.entered(request))
            except ApiError:
                await discard(request.stream())
                raise
            limits, store = self.routes.limits, self.routes.shelves.of_caller(caller).files
            room = max(0, limits.max_stored_bytes - await asyncio.to_thread(store.total_bytes))
            limit_bytes = min(limits.max_file_bytes, room)
            record = await receive_file(request, store, limit_bytes, limits.keep_days * DAY_S)
        return JSONResponse(record.object())

    async def list(self, request: Request) -> Response:
        """The latest first; `after` is the last id of the page before."""
        store = self._shelf(request).files
        query = parsed(FileQuery, dict(request.query_params))
        page = Page(limit=query.limit, after=query.after, order=query.order)
        records, has_more = await asyncio.to_thread(store.page, page, query.purpose)
        return JSONResponse(list_object([record.object() for record in records], has_more))

    async def get(self, request: Request, file_id: str) -> Response:
        """One file's facts."""
        return JSONResponse(self._record(self._shelf(request), file_id).object())

    async def content(self, request: Request, file_id: str) -> Response:
        """The file itself."""
        shelf = self._shelf(request)
        path = shelf.files.content(self._record(shelf, file_id))
        return FileResponse(path, media_type="application/octet-stream")

    async def delete(self, request: Request, file_id: str) -> Response:
        """A batch that was made of it goes on."""
        store = self._shelf(request).files
        if not await asyncio.to_thread(store.delete, file_id):
            raise no_such("File", file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    def _shelf(self, request: Request) -> Shelf:
        return self.routes.shelves.of_caller(self.gate.caller(request))

    def _record(self, shelf: Shelf, file_id: str) -> FileRecord:
        record = shelf.files.get(file_id)
        if record is None:
            raise no_such("File", file_id)
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJobRoutes:
    routes: BatchRoutes
    gate: Gate

    async def create(self, request: Request) -> Response:
        """A batch of a file's requests; it is checked and run in its turn."""
        with self.gate.entered(request) as caller:
            body = parsed(BatchBody, await read_body(request, MAX_BODY_BYTES))
            folder = await asyncio.to_thread(self._made, self.routes.shelves.of_caller(caller), body)
            self.routes.wake()
            return JSONResponse(folder.object())

    async def list(self, request: Request) -> Response:
        """The latest first; `after` is the last id of the page before."""
        store = self._shelf(request).batches
        query = parsed(BatchQuery, dict(request.query_params))
        return JSONResponse(await asyncio.to_thread(_listed, store, Page(limit=query.limit, after=query.after)))

    async def get(self, request: Request, batch_id: str) -> Response:
        """How far it is."""
        return JSONResponse(self._folder(request, batch_id).object())

    async def cancel(self, request: Request, batch_id: str) -> Response:
        """Rows in flight are finished; what is done by then is in the output file."""
        folder = self._folder(request, batch_id)
        state = folder.state
        if state.is_over:
            raise ApiError(409, f"Cannot cancel a batch with status '{state.status}'.", param="batch_id")
        folder.cancel(time.time())
        self.routes.wake()
        return JSONResponse(folder.object())

    def _made(self, shelf: Shelf, body: BatchBody) -> BatchFolder:
        record = shelf.files.get(body.input_file_id)
        if record is None:
            raise bad_parameter("input_file_id", f"No such File object: {body.input_file_id[:80]}", "file_not_found")
        if record.purpose != "batch":
            raise bad_parameter("input_file_id", f"The purpose of {record.id} is {record.purpose}, not batch")
        now_s = int(time.time())
        expiry = body.output_expires_after
        wanted = BatchRequest(
            id=new_id(BATCH_PREFIX),
            endpoint=body.endpoint,
            input_file_id=record.id,
            output_file_id=new_id(FILE_PREFIX),
            error_file_id=new_id(FILE_PREFIX),
            created_at=now_s,
            expires_at=now_s + WINDOW_S,
            metadata=body.metadata,
            output_expires_after_s=expiry.seconds if expiry is not None else None,
        )
        try:
            return shelf.batches.create(wanted, shelf.files.content(record))
        except FileNotFoundError:
            raise bad_parameter("input_file_id", f"No such File object: {record.id}", "file_not_found") from None

    def _shelf(self, request: Request) -> Shelf:
        return self.routes.shelves.of_caller(self.gate.caller(request))

    def _folder(self, request: Request, batch_id: str) -> BatchFolder:
        folder = self._shelf(request).batches.get(batch_id)
        if folder is None:
            raise no_such("Batch", batch_id)
        return folder


def _listed(store: BatchStore, page: Page) -> dict[str, Any]:
    folders, has_more = store.page(page)
    return list_object([folder.object() for folder in folders], has_more)


def no_such(kind: str, name: str) -> ApiError:
    return ApiError(404, f"No such {kind} object: {name[:80]}", param="id", code=None)
