"""Forms in pieces of every size give the same parts as another library encoded; malformed ones are refused."""

from __future__ import annotations

import httpx
import pytest

from serve_app.batches.multipart import FormError, FormParser, PartBegin, PartData, boundary_of

CONTENT = b"\r\n--not the boundary\r\n\r\n--" + bytes(range(256)) + b"\r\n"


def encoded() -> tuple[bytes, bytes]:
    """Boundary and body, as httpx and so the openai client writes them."""
    request = httpx.Request(
        "POST", "http://x", data={"purpose": "batch", "empty": ""}, files={"file": ('nämé "1".jsonl', CONTENT)}
    )
    return boundary_of(request.headers["content-type"]), request.read()


def parts(boundary: bytes, body: bytes, size: int) -> dict[str, tuple[str | None, bytes]]:
    parser = FormParser(boundary=boundary)
    found: dict[str, tuple[str | None, bytes]] = {}
    name = ""
    for at in range(0, len(body), size):
        for event in parser.feed(body[at : at + size]):
            if isinstance(event, PartBegin):
                name = event.name
                found[name] = (event.filename, b"")
            elif isinstance(event, PartData):
                found[name] = (found[name][0], found[name][1] + event.data)
    parser.end()
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_pieces_of_any_size_give_the_same_parts(size: int) -> None:
    found = parts(*encoded(), size)
    assert found.keys() == {"purpose", "empty", "file"}
    assert found["purpose"] == (None, b"batch")
    assert found["empty"] == (None, b"")
    assert found["file"][1] == CONTENT
    assert (found["file"][0] or "").startswith("nämé")


def test_what_stands_before_and_behind_the_parts_is_nothing() -> None:
    body = b'preamble\r\n--b  \r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b--\r\nepilogue\r\n--b\r\n'
    assert parts(b"b", body, 5) == {"a": (None, b"1")}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1', "ends before"),
        (b"", "ends before"),
        (b"--bx\r\n", "followed by"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\n1\r\n--b--", "no name"),
        (b"--b\r\nContent-Type: text/plain\r\n\r\n1\r\n--b--", "no name"),
        (b"--b\r\nX: " + b"x" * 9000 + b"\r\n\r\n", "longer"),
        (b"--b" + b" " * 9000, "followed by"),
    ],
)
def test_a_malformed_form_is_refused(body: bytes, word: str) -> None:
    with pytest.raises(FormError, match=word):
        parts(b"b", body, 16)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=" + "x" * 71,
        "multipart/mixed; boundary=b",
    ],
)
def test_another_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(FormError):
        boundary_of(content_type)
