"""A request's bytes as one of the checked bodies, or the error that OpenAI would answer; it knows no model."""

from __future__ import annotations

from pydantic import ValidationError

from engine.openai_bodies import Body, ChatBody, CompletionBody, GenerationBody
from serve_app.errors import of_validation

__all__ = ["Body", "ChatBody", "CompletionBody", "GenerationBody", "parse"]


def parse(kind: type[Body], body: bytes) -> Body:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise of_validation(error) from None
