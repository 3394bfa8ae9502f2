"""docs/metrics.md is the catalogue's."""

from __future__ import annotations

from serve_app.metrics.document import PATH, document


def test_the_document_is_the_lists() -> None:
    assert PATH.read_text(encoding="utf-8") == document(), "run python -m serve_app.metrics.document"
