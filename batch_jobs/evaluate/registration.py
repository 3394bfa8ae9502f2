"""What was measured, written where it is read: fleet.yaml and a checkpoint's own card; it measures nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batch_jobs.disk import write_whole
from batch_jobs.evaluate.report import EvaluateReport, VariantScore
from cluster.config import register_quality

QUALITY_LINE = re.compile(r"^Quality: .*$", re.MULTILINE)
"""Of a model card, as `quantfleet quantize` leaves it to be filled."""


def register(report: EvaluateReport, config: Path | None, folders: Mapping[str, Path]) -> list[str]:
    """A line for each place written to. `folders`: the checkpoints that were given as folders, by variant."""
    done: list[str] = []
    for score in report.variants:
        if score.name == report.reference:
            continue
        folder = folders.get(score.name)
        section = None if folder is None else {"method": score.method, "source": str(folder)}
        file = register_quality(config, score.name, round(score.quality, 4), section)
        done.append(f"{file}: variants.{score.name}.quality: {score.quality:.4f}")
        if folder is not None and (folder / "quantfleet.json").exists():
            _fill_card(folder, report, score)
            done.append(f"{folder}: quality {score.quality:.4f} in quantfleet.json and README.md")
    return done


def _fill_card(folder: Path, report: EvaluateReport, score: VariantScore) -> None:
    note, card = folder / "quantfleet.json", folder / "README.md"
    said: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    said["quality"] = {
        "quality": score.quality,
        "perplexity": score.perplexity,
        "reference_perplexity": report.variants[0].perplexity,
        "kl": score.kl,
        "top1_agreement": score.top1_agreement,
        "text": {"name": report.text.name, "sha256": report.text.sha256},
        "scored_tokens": report.text.scored_tokens,
        "context": report.text.context,
        "stride": report.text.stride,
        "measured_at": report.measured_at,
    }
    write_whole(note, (json.dumps(said, indent=1) + "\n").encode())
    if card.exists():
        write_whole(card, _with_quality_line(card.read_text(encoding="utf-8"), report, score).encode())


def _with_quality_line(card: str, report: EvaluateReport, score: VariantScore) -> str:
    """In the place of the card's own line; at the end of one that has none."""
    line = (
        f"Quality: {score.quality:.4f} (perplexity {report.variants[0].perplexity:.2f} of {report.reference} /"
        f" {score.perplexity:.2f}, KL {score.kl:.4f} nats, top-1 agreement {score.top1_agreement:.1%};"
        f" {report.text.scored_tokens} tokens of {report.text.name}, windows of {report.text.context})"
    )
    if QUALITY_LINE.search(card):
        return QUALITY_LINE.sub(lambda _: line, card, count=1)
    return f"{card.rstrip()}\n\n{line}\n"
