"""A report with made-up figures, for tests of what shows and writes one."""

from __future__ import annotations

from batch_jobs.evaluate.report import EvaluateReport, Machine, PromptsReport, TextNote, TextReport, VariantScore


def score_of(name: str, quality: float, megabytes: float, rate: float | None = None, **changes: object) -> VariantScore:
    values: dict[str, object] = {
        "name": name,
        "method": "none",
        "source": None,
        "calibration": None,
        "perplexity": 20.0 / quality,
        "quality": quality,
        "kl": 0.01,
        "top1_agreement": 0.95,
        "greedy_agreement": 0.5,
        "greedy_leading_agreement": 0.75,
        "weight_bytes": round(megabytes * 1e6),
        "read_bytes": round(megabytes * 1e6),
        "quality_s": 1.0,
        "tokens_per_s_batch_1": rate,
        "tokens_per_s_best_batch": None if rate is None else 4 * rate,
        "best_batch": None if rate is None else 16,
    }
    return VariantScore(**(values | changes))  # type: ignore[arg-type]


def report_of(*scores: VariantScore) -> EvaluateReport:
    return EvaluateReport(
        model="tiny",
        reference=scores[0].name,
        variants=scores,
        text=TextReport(
            name="text.txt", sha256="ab" * 32, characters=900, tokens=200, scored_tokens=196, context=64, stride=64
        ),
        prompts=PromptsReport(name="built-in", sha256="cd" * 32, prompts=16, answer_tokens=64),
        machine=Machine(accelerator="cpu-2", cores=2, threads=2),
        seconds=3.0,
    )


NOTE = TextNote(name="corpus.txt", sha256="ef" * 32)
