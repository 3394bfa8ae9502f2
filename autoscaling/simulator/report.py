"""The report of simulated runs side by side as one self-contained HTML page; it computes no figure of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from autoscaling.simulator.charts import Scale, bar, bars_over_time, round_top, stacked_steps
from autoscaling.simulator.summary import ClassSummary, RunSummary

COLOURS = ("#3b6fd4", "#e08a2e", "#2f9e7a", "#b4508f", "#8a6d3b", "#5b8c2a", "#7a5cc9", "#c24d4d")
STARTING, DRAINING = "starting", "draining"
AIM = 0.99
"""Of attainment: below it a figure is shown as missed."""

DOCUMENT = "<!doctype html>"
META = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
STYLE = """
:root{--ink:#1c2430;--soft:#5d6878;--line:#dfe4ea;--paper:#fff;--ground:#f4f6f8;--good:#1d7f5c;--bad:#c0392b}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b5;--line:#333c48;--paper:#1b2129;--ground:#12161c;
--good:#4cc79a;--bad:#ff7b6b}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 24px 64px}h1{font-size:26px;margin:0 0 4px}
h2{font-size:17px;margin:32px 0 10px}p.note{color:var(--soft);margin:0 0 8px}
section.card{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:16px 18px}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{color:var(--soft);font-weight:600}
tbody tr:last-child td{border-bottom:0}tr.part td{color:var(--soft);font-weight:600;padding-top:16px}
.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}.best{font-weight:700}
.bar{display:inline-block;width:84px;height:8px;border-radius:4px;background:var(--line);margin-right:8px;overflow:hidden}
.bar span{display:block;height:100%}
.runs{display:grid;grid-template-columns:repeat(auto-fit,minmax(430px,1fr));gap:16px}
.runs h3{margin:0 0 2px;font-size:15px}svg{width:100%;height:auto;display:block}
svg text{font-size:11px;fill:var(--soft)}svg .grid{stroke:var(--line);stroke-width:1}
.legend{color:var(--soft);font-size:13px;margin:4px 0 10px}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin:0 5px 0 14px}
.legend i:first-child{margin-left:0}
"""


def html_report(runs: Sequence[RunSummary]) -> str:
    """One page, without anything to fetch."""
    first = runs[0]
    body = [
        f"<h1>{escape(first.model)}, simulated</h1>",
        f'<p class="note">{escape(_subtitle(first))}</p>',
        "<h2>Side by side</h2>",
        _card(_overview(runs)),
        "<h2>By SLO class</h2>",
        '<p class="note">Attainment is over all offered requests: a refused one, or one answered below its quality'
        " floor, has missed.</p>",
        _card(_classes(runs)),
        "<h2>Replicas over time</h2>",
        _legend(_variants(runs)),
        _replica_charts(runs),
        "<h2>Arrivals</h2>",
        _arrival_charts(runs),
        "<h2>By variant</h2>",
        _card(_variant_table(runs)),
    ]
    head = f"<title>{escape(first.model)}</title><style>{STYLE}</style>"
    return f'{DOCUMENT}<html lang="en"><head>{META}{head}</head><body><main>{"".join(body)}</main></body></html>'


def _subtitle(run: RunSummary) -> str:
    rate = f" at {run.rate:g} times its rate" if run.rate != 1 else ""
    after = f", after a warm-up of {run.warm_up_s:g} s" if run.warm_up_s else ""
    return (
        f"{run.traffic}{rate}: {run.offered:,} requests in {run.duration_s / 3600:.2f} h on {run.accelerator}{after};"
        f" seed {run.seed}, context {run.max_context:,} tokens"
    )


def _overview(runs: Sequence[RunSummary]) -> str:
    rows = [
        _row("Policy", runs, lambda run: escape(run.policy)),
        _row("Attainment", runs, lambda run: _attainment(run.attainment)),
        _row("Attainment of the worst class", runs, lambda run: _attainment(run.lowest_attainment)),
        _best_row("GPU-hours", runs, lambda run: run.gpu_hours, "{:,.2f}", best=min),
        _best_row("Cost", runs, lambda run: run.cost, "${:,.2f}", best=min),
        _best_row("Goodput, requests/s", runs, lambda run: run.goodput_per_s, "{:,.2f}", best=max),
        _best_row("Goodput by GPU-hour", runs, lambda run: run.goodput_per_gpu_hour, "{:,.0f}", best=max),
        _row("Refused", runs, lambda run: f"{run.refused:,}"),
        _row("of these longer than the context", runs, _too_long),
    ]
    return _table(["", *(escape(run.name) for run in runs)], rows)


def _too_long(run: RunSummary) -> str:
    return f"{run.too_long:,}" + (f" (up to {run.longest_tokens:,} tokens)" if run.too_long else "")


def _classes(runs: Sequence[RunSummary]) -> str:
    rows = []
    for name in sorted({name for run in runs for name in run.classes}):
        rows.append(f'<tr class="part"><td colspan="{len(runs) + 1}">{escape(name)}</td></tr>')
        for title, cell in _CLASS_ROWS.items():
            cells = [cell(run.classes[name]) if name in run.classes else "" for run in runs]
            rows.append(f"<tr><td>{title}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return _table(["", *(escape(run.name) for run in runs)], rows)


def _variant_table(runs: Sequence[RunSummary]) -> str:
    rows = []
    for run in runs:
        rows.append(f'<tr class="part"><td colspan="6">{escape(run.name)}</td></tr>')
        for name, each in run.variants.items():
            busy = "" if each.busy is None else f"{each.busy:.0%}"
            preemptions = "" if each.preemptions is None else f"{each.preemptions:,}"
            answered = sum(entry.answered_by.get(name, 0) for entry in run.classes.values())
            rows.append(
                f"<tr><td>{escape(name)}</td><td>{each.gpu_hours:,.2f}</td><td>{each.most_replicas}</td>"
                f"<td>{busy}</td><td>{answered:,}</td><td>{preemptions}</td></tr>"
            )
    return _table(["", "GPU-hours", "most replicas", "busy", "answers", "preemptions"], rows)


def _replica_charts(runs: Sequence[RunSummary]) -> str:
    variants = _variants(runs)
    colours = _colours(variants)
    most = max((sum(_held(point)) for run in runs for point in run.replicas), default=1.0)
    cards = []
    for run in runs:
        scale = Scale(max(run.duration_s for run in runs) or 1.0, round_top(most))
        points = [point for point in run.replicas if point.at_s <= run.duration_s]
        layers = {name: [float(point.running.get(name, 0)) for point in points] for name in variants}
        layers[STARTING] = [float(sum(point.starting.values())) for point in points]
        layers[DRAINING] = [float(sum(point.draining.values())) for point in points]
        # What ends with the run ends there, not at the longest run's end.
        times_s = [point.at_s for point in points] + [run.duration_s]
        layers = {name: [*values, 0.0] for name, values in layers.items()}
        chart = stacked_steps(times_s, layers, colours, scale)
        cards.append(f"<h3>{escape(run.name)}</h3>{chart}")
    return _cards(cards)


def _arrival_charts(runs: Sequence[RunSummary]) -> str:
    shown: dict[tuple[float, ...], RunSummary] = {}
    for run in runs:
        shown.setdefault(run.arrivals, run)
    cards = []
    for run in shown.values():
        scale = Scale(max(run.duration_s, 1.0), round_top(max(run.arrivals, default=1.0)))
        chart = bars_over_time(run.arrivals, run.arrivals_bin_s, COLOURS[0], scale)
        title = f"Requests a second, in {run.arrivals_bin_s:g} s" + ("" if len(shown) == 1 else f": {run.name}")
        cards.append(f"<h3>{escape(title)}</h3>{chart}")
    return _cards(cards)


def _held(point: object) -> list[float]:
    return [float(sum(getattr(point, part).values())) for part in ("running", STARTING, DRAINING)]


def _variants(runs: Sequence[RunSummary]) -> list[str]:
    return sorted({name for run in runs for name in run.variants})


def _colours(variants: Sequence[str]) -> dict[str, str]:
    named = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(variants)}
    return named | {STARTING: "#a9b4c2", DRAINING: "#d8c9c9"}


def _legend(variants: Sequence[str]) -> str:
    marks = (f'<i style="background:{colour}"></i>{escape(name)}' for name, colour in _colours(variants).items())
    return f'<div class="legend">{"".join(marks)}</div>'


def _attainment(share: float) -> str:
    word = "good" if share >= AIM else "bad"
    return f'{bar(share, f"var(--{word})")}<span class="{word}">{share:.2%}</span>'


def _figures(p50: float | None, p99: float | None) -> str:
    return "none" if p50 is None or p99 is None else f"{p50:,.0f} / {p99:,.0f}"


_CLASS_ROWS: dict[str, Callable[[ClassSummary], str]] = {
    "Attainment": lambda each: _attainment(each.attainment),
    "Offered": lambda each: f"{each.offered:,}",
    "Refused": lambda each: f"{each.refused:,}",
    "Below the quality floor": lambda each: f"{each.below_floor:,}",
    "TTFT p50 / p99, ms": lambda each: _figures(each.ttft_ms.p50, each.ttft_ms.p99),
    "TPOT p50 / p99, ms": lambda each: _figures(each.tpot_ms.p50, each.tpot_ms.p99),
    "Answered by": lambda each: ", ".join(f"{escape(name)} {count:,}" for name, count in each.answered_by.items()),
}


def _row(title: str, runs: Sequence[RunSummary], cell: Callable[[RunSummary], str]) -> str:
    return f"<tr><td>{title}</td>{''.join(f'<td>{cell(run)}</td>' for run in runs)}</tr>"


def _best_row(
    title: str,
    runs: Sequence[RunSummary],
    figure: Callable[[RunSummary], float],
    text: str,
    *,
    best: Callable[[Sequence[float]], float],
) -> str:
    figures = [figure(run) for run in runs]
    top = best(figures) if len(runs) > 1 else None
    cells = (f"<td{' class=best' if each == top else ''}>{text.format(each)}</td>" for each in figures)
    return f"<tr><td>{title}</td>{''.join(cells)}</tr>"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    columns = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _card(inside: str) -> str:
    return f'<section class="card">{inside}</section>'


def _cards(insides: Sequence[str]) -> str:
    return f'<div class="runs">{"".join(_card(inside) for inside in insides)}</div>'
