"""Latency and throughput over the batch size, measured and by the roofline: why several precisions pay."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from batch_jobs.profiling.specs import Measured
from cluster.cost_model import BestBatch, CostModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARGIN = 1.3
"""The panels end so many times beyond B_best."""
POINTS_A_PANEL = 64


def draw(measured: Sequence[Measured], best: Sequence[BestBatch], context_tokens: int, path: Path) -> None:
    """A column a variant: time per token above, tokens/s below; shaded where the linears wait for memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(measured) + 0.8, 6.4), layout="constrained")
    panels = figure.subplots(2, len(measured), sharex="col", sharey="row", squeeze=False)
    for column, (one, its_best) in enumerate(zip(measured, best, strict=True)):
        _panels(panels[0][column], panels[1][column], one, its_best, context_tokens)
    for axes in panels.flat:  # once every panel of a row is drawn, as they share their scale
        axes.set_ylim(bottom=0)
    panels[0][0].set_ylabel("time per token, ms")
    panels[1][0].set_ylabel("tokens/s")
    panels[0][0].legend(fontsize="small")
    key = measured[0].profile.key
    figure.suptitle(f"{key.model} on {key.accelerator}, {context_tokens} tokens of context", fontsize="medium")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    path.write_bytes(buffer.getvalue())


def _panels(above: Axes, below: Axes, one: Measured, best: BestBatch, context_tokens: int) -> None:
    fitted, roofline = one.model(one.profile), one.model(None)
    ridge, last = fitted.ridge_batch(), max(best.batch * MARGIN, 2)
    batches = sorted({max(1, round(last ** (step / POINTS_A_PANEL))) for step in range(POINTS_A_PANEL + 1)})
    for axes, value in ((above, _step_ms), (below, _tokens_per_s)):
        axes.plot(batches, [value(fitted, batch, context_tokens) for batch in batches], "k-", label="measured, fitted")
        axes.plot(batches, [value(roofline, batch, context_tokens) for batch in batches], "k:", label="roofline")
        axes.axvspan(1, min(ridge, last), color="0.9", label="waits for memory")
        axes.plot(best.batch, value(fitted, best.batch, context_tokens), "ko", label="B_best")
        if ridge < last:
            axes.axvline(ridge, color="0.4", linestyle="--", linewidth=1, label="B_ridge")
        axes.set_xscale("log", base=2)
        axes.set_xlim(1, last)
    above.set_title(f"{one.name}: B_ridge {ridge:.0f}, B_best {best.batch}", fontsize="small")
    below.set_xlabel("batch (sequences)")


def _step_ms(model: CostModel, batch: int, context_tokens: int) -> float:
    return model.decode_step_s(batch, context_tokens) * 1e3


def _tokens_per_s(model: CostModel, batch: int, context_tokens: int) -> float:
    return batch / model.decode_step_s(batch, context_tokens)
