"""The papers' experiments on one model and one text, part by part; it knows no table and no picture."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batch_jobs.bench import four_bit_types, int8_threshold, salient_channels
from batch_jobs.bench.int8_threshold import ThresholdScore
from batch_jobs.bench.reference_model import ReferenceModel
from batch_jobs.evaluate.evaluation_text import read_text
from batch_jobs.quantize.calibration import Calibration, CalibrationSettings, read_calibration
from batch_jobs.quantize.grid import GridSettings
from engine.checkpoint import ensure_checkpoint
from engine.text import TextCodec
from kernels import threads

THRESHOLDS = (2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, math.inf)
SALIENT_GRID = GridSettings(bits=3, group_size=64)
"""AWQ's tables are of int3 in groups of 128; 64 divides the rows of small models too."""

Progress = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What every figure of a run has in common."""

    model: str
    text: str
    text_sha256: str
    num_tokens: int
    context: int
    calibration: str
    calibration_sha256: str
    reference: float
    """The unquantised model's perplexity, in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiments:
    """One model in memory."""

    model: ReferenceModel
    scale: Scale
    token_ids: list[int]
    calibration: Calibration

    @classmethod
    def open(
        cls,
        source: str,
        text: Path,
        *,
        calibration: Path | None,
        context: int,
        max_tokens: int | None,
        num_threads: int,
    ) -> Experiments:
        """UserError for a model, a text or a calibration file that cannot be read."""
        folder = ensure_checkpoint(source)
        measured = read_text(text, TextCodec(folder), max_tokens)
        fitted = read_calibration(CalibrationSettings(file=calibration, seq_len=context), folder)
        threads.set_num_threads(num_threads)
        model = ReferenceModel(folder, num_threads)
        scale = Scale(
            model=source,
            text=measured.name,
            text_sha256=measured.sha256,
            num_tokens=len(measured.token_ids),
            context=context,
            calibration=fitted.name,
            calibration_sha256=hashlib.sha256(fitted.windows_sha256.encode()).hexdigest(),
            reference=model.perplexity(measured.token_ids, context),
        )
        return cls(model=model, scale=scale, token_ids=measured.token_ids, calibration=fitted)

    def types(self, progress: Progress) -> dict[str, float]:
        return four_bit_types.compare(self.model, self.token_ids, self.scale.context, progress)

    def int8(self, progress: Progress) -> list[ThresholdScore]:
        return int8_threshold.sweep(self.model, self.token_ids, self.scale.context, THRESHOLDS, progress)

    def salient(self, progress: Progress) -> dict[str, float]:
        windows = self.calibration.windows
        return salient_channels.compare(self.model, self.token_ids, windows, self.scale.context, SALIENT_GRID, progress)


STEPS = {"types": len(four_bit_types.TYPES), "int8": 2 * len(THRESHOLDS), "salient": salient_channels.num_treatments()}
"""How often each part tells its progress."""
