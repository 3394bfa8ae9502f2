"""Windows of tokens that a quantisation is fitted to, from a text file or from Python's own prose; it runs no model."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

from batch_jobs.quantize.python_corpus import python_corpus
from batch_jobs.text_overlap import paragraph_hashes
from cluster.errors import UserError
from engine.text import TextCodec

PYTHON_CORPUS = "prose of the Python installation"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    file: Path | None = None
    """UTF-8; None: python_corpus."""
    num_samples: int = 256
    seq_len: int = 128
    """Short on purpose: all heads attend to a window's first token, whose values GPTQ may spoil where it is one of 512.

    The embedded model at 4 bits a row with act-order, 8192 tokens: 25.1 perplexity from windows of 512, 23.0 of 128.
    """
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("num-samples", self.num_samples, 1, 2**20),
            ("seq-len", self.seq_len, 8, 2**20),
            ("seed", self.seed, 0, 2**63 - 1),
        ):
            if not least <= value <= most:
                raise UserError(f"--{name} {value}: must lie between {least} and {most}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Which text it was, so that nobody measures quality on the same one."""

    name: str
    sha256: str
    num_samples: int
    seq_len: int
    seed: int
    num_text_tokens: int
    paragraphs: tuple[str, ...]
    """text_overlap.paragraph_hashes, sorted"""
    windows: tuple[tuple[int, ...], ...]
    """num_samples times seq_len token ids"""

    @property
    def windows_sha256(self) -> str:
        return hashlib.sha256(repr(self.windows).encode()).hexdigest()


def read_calibration(settings: CalibrationSettings, checkpoint: Path) -> Calibration:
    """Windows that begin at random tokens of the text; UserError where it cannot be read or is too short."""
    text = python_corpus() if settings.file is None else _read(settings.file)
    name = PYTHON_CORPUS if settings.file is None else settings.file.name
    token_ids = TextCodec(checkpoint).encode(text)
    if len(token_ids) < settings.seq_len:
        raise UserError(
            f"--calibration {settings.file or name}: has {len(token_ids)} tokens, fewer than one sample of"
            f" {settings.seq_len}; give a longer text or --seq-len {max(8, len(token_ids))} or less"
        )
    draw = random.Random(settings.seed)
    begins = [draw.randrange(len(token_ids) - settings.seq_len + 1) for _ in range(settings.num_samples)]
    return Calibration(
        name=name,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        num_samples=settings.num_samples,
        seq_len=settings.seq_len,
        seed=settings.seed,
        num_text_tokens=len(token_ids),
        paragraphs=tuple(sorted(paragraph_hashes(text))),
        windows=tuple(tuple(token_ids[begin : begin + settings.seq_len]) for begin in begins),
    )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--calibration {file}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--calibration {file}: is not UTF-8 ({error.reason} at byte {error.start})") from None
