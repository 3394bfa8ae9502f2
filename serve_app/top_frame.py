"""One frame of `quantfleet top`: GET /v1/fleet's JSON as lines for a terminal; it asks no fleet and keeps no time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

State = Mapping[str, Any]
"""What GET /v1/fleet answers; see serve_app/ingress.py."""

MOST_DECISIONS = 50
BAR_CELLS = 10
NAME_CELLS = 12
"""Longer names of variants are cut, so that a line of a replica is 80 wide at most."""
KV_TIGHT, KV_FULL = 0.75, 0.9
"""Of a KV cache: from there on yellow, and red."""
ATTAINMENT_GOOD, ATTAINMENT_POOR = 0.99, 0.9
"""Green from the one on, red below the other."""
STALE_S = 3.0
"""A replica is heard of every second: one older than that has its age shown."""
MIN_DECISIONS = 3
FIXED_LINES = 6
"""The heading, a line for a notice, a heading for each of three lists, and one line left for the cursor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heights:
    """Lines for each list, their own headings not counted."""

    replicas: int
    classes: int
    decisions: int


def with_decision(seen: Sequence[State], state: State) -> tuple[State, ...]:
    """The decisions seen so far, newest first, and the one that `state` brings if it is another."""
    latest = state["scaling"]
    if latest is None or (seen and seen[0]["decided_at_s"] == latest["decided_at_s"]):
        return tuple(seen)
    return (latest, *seen)[:MOST_DECISIONS]


def heights(height: int, *, num_replicas: int, num_classes: int) -> Heights:
    """Classes first, since they are few; replicas next, and decisions get the rest, three lines at least."""
    left = max(3, height - FIXED_LINES)
    classes = min(num_classes, max(1, left // 3))
    replicas = max(1, min(num_replicas, left - classes - MIN_DECISIONS))
    return Heights(replicas=replicas, classes=classes, decisions=max(1, left - classes - replicas))


def frame(state: State, decisions: Sequence[State], *, height: int, notice: str = "") -> RenderableType:
    """`height` lines at most, at any width from 80 columns on; `notice` is what went wrong, in a line of its own."""
    replicas = [replica for variant in state["variants"] for replica in _replica_rows(variant)]
    lines = heights(height, num_replicas=len(replicas), num_classes=len(state["slo_classes"]))
    classes = [_class_row(name, report) for name, report in state["slo_classes"].items()]
    return Group(
        _heading(state),
        Text(notice, style="bold red", overflow="ellipsis", no_wrap=True),
        _table(
            ("variant", "replica", "state", ">run", ">wait", "KV cache", ">tok/s", ">prompt/s"),
            replicas,
            lines.replicas,
        ),
        _table(("class", ">ttft ms", ">tpot ms", ">offered", ">met", "attainment"), classes, lines.classes),
        _decisions(decisions, lines.decisions, is_scaled=state["scaling"] is not None),
    )


def _heading(state: State) -> Text:
    counts = (
        f"  {state['in_flight']} in flight · {state['background_in_flight']} background · {state['queued']} waiting"
    )
    return Text.assemble(
        ("quantfleet ", "bold"), (state["model"], "bold cyan"), counts, overflow="ellipsis", no_wrap=True
    )


def _replica_rows(variant: State) -> list[tuple[Text, ...]]:
    """The variant's name stands at its first replica; one without any has a line all the same."""
    names = [variant["name"], *[""] * len(variant["replicas"])]
    if not variant["replicas"]:
        return [(_name(names[0]), Text("-"), Text("none", style="dim"))]
    return [_replica_row(name, replica) for name, replica in zip(names, variant["replicas"], strict=False)]


def _replica_row(name: str, replica: State) -> tuple[Text, ...]:
    used, capacity = replica["kv_tokens_used"], replica["kv_tokens_capacity"]
    share = used / capacity if capacity else 0.0
    style = "green" if share < KV_TIGHT else "yellow" if share < KV_FULL else "red"
    is_stale = replica["age_s"] > STALE_S
    state = f"silent {replica['age_s']:.0f} s" if is_stale else replica["state"]
    return (
        _name(name),
        Text(replica["replica_id"][:8]),
        Text(state, style="green" if state == "ready" else "yellow"),
        Text(str(replica["decode_sequences"] + replica["background_sequences"])),
        Text(str(replica["waiting_requests"] + replica["background_waiting"])),
        _bar(share, style, f"{share:4.0%} /{_short(capacity)}"),
        Text(_short(round(replica["decode_tokens_per_s"]))),
        Text(_short(round(replica["prefill_tokens_per_s"]))),
    )


def _name(name: str) -> Text:
    text = Text(name, style="cyan")
    text.truncate(NAME_CELLS, overflow="ellipsis")
    return text


def _class_row(name: str, report: State) -> tuple[Text, ...]:
    limits = [Text("-" if report[key] is None else f"{report[key]:g}") for key in ("ttft_ms", "tpot_ms")]
    counts = [Text(str(report[key])) for key in ("offered", "met")]
    if not report["offered"]:
        return (Text(name), *limits, *counts, Text("no request yet", style="dim"))
    kept = report["attainment"]
    style = "green" if kept >= ATTAINMENT_GOOD else "yellow" if kept >= ATTAINMENT_POOR else "red"
    return (Text(name), *limits, *counts, _bar(kept, style, f"{kept:6.1%}"))


def _decisions(decisions: Sequence[State], most: int, *, is_scaled: bool) -> RenderableType:
    title = Text("decisions", style="bold dim")
    if not decisions:
        return Group(
            title, Text("none yet" if is_scaled else "none: no decision has come from a scaling policy", style="dim")
        )
    earlier = [*decisions[1:], None]
    pairs = zip(decisions[:most], earlier, strict=False)
    return Group(title, *[_decision_line(decision, before) for decision, before in pairs])


def _decision_line(decision: State, before: State | None) -> Text:
    """Bold where it asks for other replicas than the one before."""
    at = datetime.fromtimestamp(decision["decided_at_s"]).strftime("%H:%M:%S")
    changes = before is not None and before["replicas"] != decision["replicas"]
    targets = ", ".join(_target(name, count, before) for name, count in decision["replicas"].items())
    dry_run = " (dry run)" if decision["dry_run"] else ""
    reason = " ".join(decision["reason"].split())
    line = Text(overflow="ellipsis", no_wrap=True)
    return (
        line.append(f"{at}  ", "dim")
        .append(f"{targets}{dry_run}", "bold" if changes else "")
        .append(f"  {reason}", "dim")
    )


def _target(name: str, count: int, before: State | None) -> str:
    earlier = count if before is None else before["replicas"].get(name, 0)
    return f"{name} {count}" if earlier == count else f"{name} {earlier}→{count}"


def _table(titles: Sequence[str], rows: Sequence[tuple[Text, ...]], most: int) -> RenderableType:
    """`>` before a title: its column stands to the right. What does not fit is counted in the last line."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold dim")
    for title in titles:
        justify = "right" if title.startswith(">") else "left"
        table.add_column(title.removeprefix(">"), justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
    shown = rows if len(rows) <= most else rows[: most - 1]
    for row in shown:
        table.add_row(*row)
    if len(shown) == len(rows):
        return table
    return Group(table, Text(f"… and {len(rows) - len(shown)} more", style="dim"))


def _bar(share: float, style: str, label: str) -> Text:
    full = round(min(1.0, max(0.0, share)) * BAR_CELLS)
    return Text.assemble(("█" * full, style), ("░" * (BAR_CELLS - full), "dim"), f" {label}")


def _short(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}k" if count >= 1e4 else str(count)
