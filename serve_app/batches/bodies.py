"""What the Batch API's routes are asked for, checked to the type; it knows no files and no batches."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from batch_jobs.openai_lines import BatchUrl
from serve_app.batches.ids import Order
from serve_app.errors import of_validation

MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 30 * 24 * 3600
MAX_METADATA = 16
MAX_KEY_LETTERS, MAX_VALUE_LETTERS = 64, 512
MAX_FILES, MAX_BATCHES, DEFAULT_BATCHES = 10_000, 100, 20
"""Of a page, as OpenAI bounds them."""


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Expiry(Asked):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)]


class FileForm(Asked):
    """The fields of POST /v1/files beside the file itself."""

    purpose: Literal["batch"]
    expires_after: Expiry | None = None


class BatchBody(Asked):
    """POST /v1/batches."""

    input_file_id: str
    endpoint: BatchUrl
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None
    output_expires_after: Expiry | None = None

    @field_validator("metadata")
    @classmethod
    def _small(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        for key, value in (metadata or {}).items():
            if len(key) > MAX_KEY_LETTERS or len(value) > MAX_VALUE_LETTERS:
                raise ValueError(f"a key has at most {MAX_KEY_LETTERS} letters, a value {MAX_VALUE_LETTERS}")
        if metadata is not None and len(metadata) > MAX_METADATA:
            raise ValueError(f"{len(metadata)} pairs; there may be {MAX_METADATA}")
        return metadata


class FileQuery(Asked):
    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_FILES)] = MAX_FILES
    order: Order = "desc"
    purpose: str | None = None


class BatchQuery(Asked):
    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_BATCHES)] = DEFAULT_BATCHES


AskedFor = TypeVar("AskedFor", bound=Asked)


def parsed(kind: type[AskedFor], value: object) -> AskedFor:
    """Of a body's JSON as bytes, or of fields as text. ApiError 400 names what is wrong."""
    try:
        return kind.model_validate_json(value) if isinstance(value, bytes) else kind.model_validate(value)
    except ValidationError as error:
        raise of_validation(error) from None
