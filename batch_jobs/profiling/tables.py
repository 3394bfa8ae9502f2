"""What `quantfleet profile` shows on the console; it measures nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from batch_jobs.profiling.check import Check
from batch_jobs.profiling.specs import Measured
from cluster.cost_model import BestBatch
from cluster.profile import StepShape


def profiles_table(measured: Sequence[Measured], best: Sequence[BestBatch]) -> Table:
    table = Table(title="Profiles", title_justify="left")
    for column in (
        "variant",
        "accelerator",
        "share",
        "points",
        "measured",
        "t0",
        "B_ridge",
        "B_best",
        "tokens/s at it",
    ):
        table.add_column(column, justify="left" if column in ("variant", "accelerator") else "right")
    for one, batch in zip(measured, best, strict=True):
        key, model = one.profile.key, one.model(one.profile)
        table.add_row(
            one.name,
            f"{key.accelerator}, {key.threads} thread(s)" if one.spec.device == "cpu" else key.accelerator,
            f"{key.share:g}",
            str(len(one.profile.points)),
            one.profile.measured_at.removesuffix("+00:00").replace("T", " "),
            f"{model.explain(StepShape(decode_sequences=1, kv_tokens=1)).t0_s * 1e3:.2f} ms",
            f"{model.ridge_batch():.0f}",
            str(batch.batch),
            f"{batch.tokens_per_s:,.0f}",
        )
    return table


def check_table(one: Check) -> Table:
    """Every held-out step, and the errors' median and worst."""
    table = Table(
        title=f"{one.variant}: steps that the profile does not hold",
        title_justify="left",
        caption=f"error: median {one.median_error:.1%}, worst {one.worst_error:.1%};"
        f" of the roofline without a profile: median {one.median_roofline_error:.0%}",
        caption_justify="left",
    )
    for column in ("decodes", "KV tokens", "prompt tokens", "after", "measured", "predicted", "error", "roofline"):
        table.add_column(column, justify="right")
    for each in sorted(one.predictions, key=lambda prediction: prediction.measured_s):
        shape = each.shape
        table.add_row(
            str(shape.decode_sequences),
            str(shape.kv_tokens),
            str(shape.prefill_tokens),
            str(shape.prefill_context_tokens),
            f"{each.measured_s * 1e3:.2f} ms",
            f"{each.predicted_s * 1e3:.2f} ms",
            f"{each.error:+.1%}",
            f"{each.roofline_s * 1e3:.2f} ms",
        )
    return table


def errors_table(checks: Sequence[Check]) -> Table:
    table = Table(title="Errors on held-out steps", title_justify="left")
    for column in ("variant", "steps", "median", "worst", "roofline, median"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for one in checks:
        row = (f"{one.median_error:.1%}", f"{one.worst_error:.1%}", f"{one.median_roofline_error:.0%}")
        table.add_row(one.variant, str(len(one.predictions)), *row)
    return table
