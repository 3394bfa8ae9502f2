"""What a quantisation was and what came of it, as `quantfleet.json` and the tables say it; it measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

from batch_jobs.quantize.calibration import Calibration
from batch_jobs.quantize.settings import QuantizeSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeReport:
    source: str
    output: Path
    settings: QuantizeSettings
    calibration: Calibration | None
    matrices: Mapping[str, Mapping[str, float]]
    """Errors by the matrix' full name: error, rtn_error, relative where calibrated, else weight_error"""
    source_bytes: int
    """Of all tensors that the new checkpoint stands for"""
    output_bytes: int
    seconds: float
    num_resumed_blocks: int
    """Of an earlier run, whose seconds are not counted"""
    peak_memory_bytes: int
    """Of the GPU that used most, else of all workers together"""

    @property
    def error_over_rtn(self) -> float | None:
        return error_over_rtn(self.matrices)

    @property
    def num_worse_than_rtn(self) -> int:
        return sum(matrix["error"] > matrix["rtn_error"] for matrix in self.matrices.values() if "rtn_error" in matrix)

    def as_json(self) -> dict[str, Any]:
        calibration = self.calibration
        return {
            "source": self.source,
            "method": self.settings.method,
            "settings": asdict(self.settings),
            "calibration": calibration
            and {
                "name": calibration.name,
                "sha256": calibration.sha256,
                "num_samples": calibration.num_samples,
                "seq_len": calibration.seq_len,
                "seed": calibration.seed,
                "paragraphs": list(calibration.paragraphs),
            },
            "layers": {name: dict(errors) for name, errors in self.matrices.items()},
            "source_bytes": self.source_bytes,
            "output_bytes": self.output_bytes,
            "seconds": round(self.seconds, 1),
            "resumed_blocks": self.num_resumed_blocks,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def error_over_rtn(matrices: Mapping[str, Mapping[str, float]]) -> float | None:
    """Geometric mean of the matrices' ratios: a sum would be that of the one or two matrices with large outputs."""
    ratios = [found["error"] / found["rtn_error"] for found in matrices.values() if found.get("rtn_error")]
    return exp(fmean(log(max(ratio, 1e-12)) for ratio in ratios)) if ratios else None
