"""What `quantfleet bench engine` prints, draws and writes, each figure next to its bound; it measures nothing."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One engine at one number of threads; rates in tokens/s, `bound` the roofline's for the same shapes."""

    engine: str
    threads: int
    decode_tokens_per_s: dict[int, float]
    bound_tokens_per_s: dict[int, float] = field(default_factory=dict)
    prefill_tokens_per_s: float
    rss_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    model: str
    accelerator: str
    rows: list[Row]
    kv_cache: list[dict[str, float]]
    prefix: list[dict[str, float]]
    measured_at: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    versions: dict[str, str] = field(
        default_factory=lambda: (
            {name: version(name) for name in ("quantfleet", "torch", "transformers", "numba")}
            | {"python": platform.python_version()}
        )
    )

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))


def print_report(report: Report, batches: Sequence[int], console: Console) -> None:
    console.print(_decode_table(report, batches))
    if report.kv_cache:
        console.print(_kv_table(report.kv_cache))
    if report.prefix:
        console.print(_prefix_table(report.prefix))
    console.print(
        f"{report.accelerator}; {report.measured_at}; " + ", ".join(f"{k} {v}" for k, v in report.versions.items())
    )


def _decode_table(report: Report, batches: Sequence[int]) -> Table:
    table = Table(
        title=f"{report.model}: decode tokens/s (share of the roofline's bound), 64 tokens in, 64 out",
        title_justify="left",
    )
    table.add_column("engine")
    table.add_column("threads", justify="right")
    for batch in batches:
        table.add_column(f"batch {batch}", justify="right")
    table.add_column("prefill tok/s", justify="right")
    table.add_column("RSS MB", justify="right")
    for row in report.rows:
        cells = [_with_bound(row, batch) for batch in batches]
        rss = f"{row.rss_bytes / 1e6:.0f}" if row.rss_bytes else "-"
        table.add_row(row.engine, str(row.threads), *cells, f"{row.prefill_tokens_per_s:.0f}", rss)
    return table


def _with_bound(row: Row, batch: int) -> str:
    rate = row.decode_tokens_per_s[batch]
    bound = row.bound_tokens_per_s.get(batch)
    return f"{rate:.0f}" if bound is None else f"{rate:.0f} ({rate / bound:.0%} of {bound:.0f})"


def _kv_table(rows: list[dict[str, float]]) -> Table:
    table = Table(title="What the KV cache buys: one more token at each length, batch 1", title_justify="left")
    for heading in ("tokens before", "with the cache, tok/s", "recomputing, tok/s", "times faster"):
        table.add_column(heading, justify="right")
    for row in rows:
        fast, slow = row["with_cache_s"], row["recomputing_s"]
        table.add_row(f"{row['length']:.0f}", f"{1 / fast:.1f}", f"{1 / slow:.2f}", f"{slow / fast:.1f}")
    return table


def _prefix_table(rows: list[dict[str, float]]) -> Table:
    table = Table(
        title="What prefix hits buy: time to the first token, all but 16 tokens seen before", title_justify="left"
    )
    for heading in ("prompt tokens", "new, ms", "hit, ms", "times faster"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row['length']:.0f}",
            f"{row['cold_s'] * 1e3:.0f}",
            f"{row['hit_s'] * 1e3:.0f}",
            f"{row['cold_s'] / row['hit_s']:.1f}",
        )
    return table


def plot_kv_cache(rows: list[dict[str, float]], path: Path) -> None:
    """Tokens/s over sequence length, with the cache and recomputing without it, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lengths = [row["length"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.plot(lengths, [1 / row["with_cache_s"] for row in rows], "o-", label="with the KV cache")
    axes.plot(lengths, [1 / row["recomputing_s"] for row in rows], "s--", label="recomputing the sequence")
    axes.set(xscale="log", yscale="log", xlabel="tokens before", ylabel="tokens/s, batch 1")
    axes.set_xticks(lengths, [f"{length:.0f}" for length in lengths])
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
