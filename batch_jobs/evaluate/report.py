"""What an evaluation found, as plain values and as JSON; it computes and shows nothing."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile

from cluster.errors import UserError

PACKAGES = ("quantfleet", "torch", "numba", "ray", "tokenizers")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextNote:
    """Which text a figure holds for."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantScore:
    name: str
    method: str
    source: str | None
    """The checkpoint's folder; None: quantised from the model's own weights on load."""
    calibration: TextNote | None
    perplexity: float
    quality: float
    """The reference's perplexity / its own."""
    kl: float
    """KL(reference || variant), mean over the scored tokens, in nats."""
    top1_agreement: float
    """Share of scored tokens before which both have the same likeliest token."""
    greedy_agreement: float
    """Share of prompts whose greedy answer is the reference's to the last token."""
    greedy_leading_agreement: float
    """Mean share of an answer's tokens before the first that differs."""
    weight_bytes: int
    """Resident."""
    read_bytes: int
    """Of weights, by a decode step."""
    quality_s: float
    """What measuring took, with loading."""
    tokens_per_s_batch_1: float | None = None
    """None, with the two below: speed was not measured."""
    tokens_per_s_best_batch: float | None = None
    best_batch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextReport:
    name: str
    sha256: str
    """Of the whole file."""
    characters: int
    tokens: int
    """Of the file's beginning: what was measured on."""
    scored_tokens: int
    """Those that count, that is, were predicted."""
    context: int
    stride: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsReport:
    name: str
    sha256: str
    prompts: int
    answer_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    accelerator: str
    cores: int
    threads: int
    """Of an engine while speed was measured."""
    busy_share: float | None = None
    """Of all cores, what other processes took right before speed was measured: 0 on an idle machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateReport:
    model: str
    reference: str
    """The first of the variants."""
    variants: tuple[VariantScore, ...]
    text: TextReport
    prompts: PromptsReport
    machine: Machine
    seconds: float
    measured_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    versions: dict[str, str] = field(
        default_factory=lambda: {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"


def report_path(output: Path) -> Path:
    """-o X.json is the file; -o DIR is DIR/report.json."""
    return output if output.suffix == ".json" else output / "report.json"


def check_output(output: Path) -> None:
    """UserError for a place that cannot be written to, before hours of measuring."""
    path = report_path(output)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir():
        raise UserError(f"-o {output}: {path if path.is_dir() else folder} is in the way; give X.json or a folder")
    try:
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"-o {output}: {folder} cannot be written: {error.strerror}; give another place") from None
