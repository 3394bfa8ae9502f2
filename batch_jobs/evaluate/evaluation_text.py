"""The text to measure on: read, hashed, and refused where a variant was calibrated on it; it scores nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from batch_jobs.text_overlap import shared_paragraphs
from cluster.errors import UserError
from engine.text import TextCodec

CHARACTERS_PER_TOKEN = 16
"""More than text has anywhere; what is read of a long file when only its first tokens are wanted."""

SHOWN_CHARACTERS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationText:
    name: str
    sha256: str
    """Of the file, all its bytes."""
    token_ids: list[int]
    characters: int
    """Of those tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a checkpoint says of the text it was fitted to."""

    name: str
    sha256: str
    paragraphs: frozenset[str]
    """As batch_jobs.text_overlap hashes them."""


def read_text(path: Path, codec: TextCodec, max_tokens: int | None) -> EvaluationText:
    """The file's first `max_tokens` tokens, or all of them."""
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(-1 if max_tokens is None else max_tokens * CHARACTERS_PER_TOKEN)
        with path.open("rb") as stream:
            sha256 = file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"--text {path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"--text {path}: not UTF-8: byte 0x{error.object[error.start]:02x}; convert it (iconv -t UTF-8)"
        ) from None
    token_ids = codec.encode(text)[:max_tokens]
    return EvaluationText(name=path.name, sha256=sha256, token_ids=token_ids, characters=len(codec.decode(token_ids)))


def read_calibration(folder: Path) -> Calibration | None:
    """From the quantfleet.json that `quantfleet quantize` wrote; None for other makes, or where none was needed."""
    file = folder / "quantfleet.json"
    if not file.exists():
        return None
    try:
        said: Any = json.loads(file.read_text(encoding="utf-8"))
        calibration = said.get("calibration")
        if calibration is None:
            return None
        return Calibration(
            name=calibration["name"], sha256=calibration["sha256"], paragraphs=frozenset(calibration["paragraphs"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: says nothing readable of the calibration text ({type(error).__name__}: {error});"
            " quantise again, or delete the file if the checkpoint was calibrated on no text"
        ) from None


def refuse_overlap(text: EvaluationText, codec: TextCodec, calibration: Calibration, checkpoint: Path) -> None:
    """A variant measured on what it was fitted to would look better than it is."""
    shared = shared_paragraphs(codec.decode(text.token_ids), calibration.paragraphs)
    if shared:
        begin = shared[0][:SHOWN_CHARACTERS]
        raise UserError(
            f"--text {text.name}: {checkpoint} was calibrated on {len(shared)} of its paragraphs ({calibration.name};"
            f" the first begins {begin!r}); give another text, or quantise with another --calibration"
        )
