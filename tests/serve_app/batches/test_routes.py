"""Files and batches over HTTP, by OpenAI's own client; nothing works on the batches here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from cluster.config import FleetConfig
from serve_app.auth import create_key

ENDPOINT: Any = "/v1/chat/completions"
CONTENT = b'{"custom_id": "a"}\n'


async def uploaded(client: openai.AsyncOpenAI, content: bytes = CONTENT, **extra: Any) -> Any:
    return await client.files.create(file=("requests.jsonl", content), purpose="batch", **extra)


async def created(client: openai.AsyncOpenAI, **changes: Any) -> Any:
    if "input_file_id" not in changes:
        changes["input_file_id"] = (await uploaded(client)).id
    return await client.batches.create(**{"endpoint": ENDPOINT, "completion_window": "24h", **changes})


async def test_a_file_goes_up_and_comes_down_unchanged(running: Any) -> None:
    content = bytes(range(256)) * 700
    file = await uploaded(running.openai, content, expires_after={"anchor": "created_at", "seconds": 7200})
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(content), "requests.jsonl", "batch")
    assert file.expires_at == file.created_at + 7200
    assert await running.openai.files.retrieve(file.id) == file
    assert (await running.openai.files.content(file.id)).content == content
    assert [listed.id async for listed in running.openai.files.list()] == [file.id]
    deleted = await running.openai.files.delete(file.id)
    assert (deleted.id, deleted.deleted) == (file.id, True)
    with pytest.raises(openai.NotFoundError):
        await running.openai.files.retrieve(file.id)


async def test_files_are_kept_for_the_days_of_the_configuration(running: Any) -> None:
    file = await uploaded(running.openai)
    assert file.expires_at == file.created_at + 30 * 24 * 3600


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_file_beyond_the_limit_is_413_and_leaves_nothing(running: Any, chunked: bool) -> None:
    """With its length told, and without: then the bytes are counted as they come."""
    form = running.http.build_request(
        "POST", "/v1/files", data={"purpose": "batch"}, files={"file": ("big.jsonl", b"x" * 3_000_000)}
    )

    async def pieces() -> Any:
        body = await form.aread()
        for at in range(0, len(body), 50_000):
            yield body[at : at + 50_000]

    headers = {"content-type": form.headers["content-type"]}
    content = pieces() if chunked else await form.aread()
    answer = await running.http.post("/v1/files", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")
    assert not [path for path in running.shelves.folder.rglob("*") if path.is_file()]


async def test_a_callers_files_together_have_a_limit(running: Any) -> None:
    first, *_ = [await uploaded(running.openai, b"x" * 190_000) for _ in range(2)]
    with pytest.raises(openai.APIStatusError, match="max_stored_bytes"):
        await uploaded(running.openai, b"x" * 190_000)
    await running.openai.files.delete(first.id)
    await uploaded(running.openai, b"x" * 190_000)


WRONG_FORMS: list[tuple[dict[str, Any], str | None]] = [
    ({"data": {"purpose": "fine-tune"}, "files": {"file": ("a", CONTENT)}}, "purpose"),
    ({"files": {"file": ("a", CONTENT)}}, "purpose"),
    ({"data": {"purpose": "batch"}, "files": {"other": ("a", CONTENT)}}, "other"),
    (
        {"data": {"purpose": "batch", "expires_after[seconds]": "9"}, "files": {"file": ("a", b"")}},
        "expires_after.anchor",
    ),
    ({"json": {"purpose": "batch"}}, None),
    ({"data": {"purpose": "batch"}}, None),
]


async def test_a_wrong_form_is_400_and_leaves_nothing(running: Any) -> None:
    for form, param in WRONG_FORMS:
        answer = await running.http.post("/v1/files", **form)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert not [path for path in running.shelves.folder.rglob("*") if path.is_file()]


async def test_a_batch_is_made_of_a_file_that_may_go(running: Any) -> None:
    file = await uploaded(running.openai)
    batch = await created(running.openai, input_file_id=file.id, metadata={"for": "me"})
    assert (batch.object, batch.status, batch.endpoint, batch.metadata) == (
        "batch",
        "validating",
        ENDPOINT,
        {"for": "me"},
    )
    assert batch.expires_at == batch.created_at + 24 * 3600
    assert (batch.request_counts.total, batch.output_file_id, batch.errors) == (0, None, None)
    await running.openai.files.delete(file.id)
    (folder,) = running.shelves.batches()
    assert folder.input.read_bytes() == CONTENT
    assert await running.openai.batches.retrieve(batch.id) == batch


WRONG_BATCHES: list[tuple[dict[str, Any], str]] = [
    ({"input_file_id": "file-../../x"}, "input_file_id"),
    ({"input_file_id": "file-" + "0" * 35}, "input_file_id"),
    ({"endpoint": "/v1/embeddings"}, "endpoint"),
    ({"completion_window": "1h"}, "completion_window"),
    ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ({"metadata": {str(number): "v" for number in range(17)}}, "metadata"),
    ({"extra_body": {"endpiont": "x"}}, "endpiont"),
]


async def test_a_wrong_batch_is_400_and_leaves_nothing(running: Any) -> None:
    for changes, param in WRONG_BATCHES:
        with pytest.raises(openai.BadRequestError) as caught:
            await created(running.openai, **changes)
        assert caught.value.param == param
    assert list(running.shelves.batches()) == []


async def test_batches_are_listed_page_by_page_the_latest_first(running: Any) -> None:
    file = await uploaded(running.openai)
    made = []
    for _ in range(5):
        made.append((await created(running.openai, input_file_id=file.id)).id)
        await running.http.get("/healthz")  # another millisecond
    page = await running.openai.batches.list(limit=2)
    assert (len(page.data), page.has_more) == (2, True)
    assert [batch.id async for batch in running.openai.batches.list(limit=2)] == made[::-1]
    assert [batch.id async for batch in running.openai.batches.list(after=made[2])] == [made[1], made[0]]
    with pytest.raises(openai.BadRequestError):
        await running.openai.batches.list(limit=101)


async def test_a_batch_is_cancelled_once(running: Any) -> None:
    batch = await created(running.openai)
    asked = await running.openai.batches.cancel(batch.id)
    assert (asked.status, (await running.openai.batches.cancel(batch.id)).cancelling_at) == (
        "cancelling",
        asked.cancelling_at,
    )
    (folder,) = running.shelves.batches()
    folder.set_state(folder.state.becoming("cancelled", 0))
    with pytest.raises(openai.ConflictError, match="cancelled"):
        await running.openai.batches.cancel(batch.id)


async def test_what_is_not_there_is_404(running: Any) -> None:
    for path in ("files/file-0", "files/..%2f..%2fx/content", "batches/batch_0", "batches/..%2fx"):
        answer = await running.http.get(f"/v1/{path}")
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_nothing_is_taken_while_the_server_ends(running: Any) -> None:
    file = await uploaded(running.openai)
    running.surface.drain()
    with pytest.raises(openai.InternalServerError):
        await uploaded(running.openai)
    with pytest.raises(openai.InternalServerError):
        await created(running.openai, input_file_id=file.id)
    assert (await running.openai.files.retrieve(file.id)).id == file.id


class TestKeys:
    """Two callers, each with a key."""

    @pytest.fixture
    def config(self, config: FleetConfig, keys_file: Path) -> FleetConfig:
        self.keys = [create_key(keys_file, name) for name in ("ann", "ben")]
        return config.model_copy(update={"auth": config.auth.model_copy(update={"keys_file": str(keys_file)})})

    async def test_a_key_sees_its_own_and_nothing_else(self, running: Any) -> None:
        ann, ben = (running.openai.with_options(api_key=key) for key in self.keys)
        file, batch = await uploaded(ann), await created(ann)
        assert [listed.id async for listed in ben.files.list()] == []
        assert [listed.id async for listed in ben.batches.list()] == []
        for call in (ben.files.retrieve, ben.files.content, ben.files.delete):
            with pytest.raises(openai.NotFoundError):
                await call(file.id)
        for call in (ben.batches.retrieve, ben.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                await call(batch.id)
        with pytest.raises(openai.BadRequestError, match="No such File"):
            await created(ben, input_file_id=file.id)
        assert (await ann.batches.retrieve(batch.id)).status == "validating"

    async def test_without_a_key_every_route_is_401(self, running: Any) -> None:
        for method, path in (
            *(
                ("POST", "files"),
                ("GET", "files"),
                ("GET", "files/x"),
                ("GET", "files/x/content"),
                ("DELETE", "files/x"),
            ),
            *(("POST", "batches"), ("GET", "batches"), ("GET", "batches/x"), ("POST", "batches/x/cancel")),
        ):
            answer = await running.http.request(method, f"/v1/{path}", content=b"{}")
            assert answer.status_code == 401
