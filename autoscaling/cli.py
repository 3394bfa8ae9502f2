"""The autoscaler's commands: `plan`, `explain`; each imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import autoscaling.simulator.cli
import autoscaling.tuning.cli

if TYPE_CHECKING:
    from autoscaling.plan_tables import VariantPlan
    from autoscaling.planner import Slice
    from cluster.accelerators import Accelerator
    from cluster.config import FleetConfig
    from cluster.model_shape import ModelShape
    from cluster.variants import Variant

TYPICAL_CONTEXT = 512
PIPE_COLUMNS = 150
"""Of output that goes to a file: tables are not to be folded into 80."""


def register(app: typer.Typer) -> None:
    app.command("plan")(plan)
    app.command("explain")(explain)
    autoscaling.simulator.cli.register(app)
    autoscaling.tuning.cli.register(app)


def register_bench(bench: typer.Typer) -> None:
    bench.command("control")(bench_control)


def bench_control(
    config: Annotated[
        Path | None, typer.Argument(help="fleet.yaml; without it ./fleet.yaml, else the built-in.")
    ] = None,
    accelerator: Annotated[str | None, typer.Option(help="Of this hardware, such as H100-80G.")] = None,
) -> None:
    """Microseconds a route and milliseconds a scaling decision take, beside their bounds."""
    from rich.console import Console
    from rich.table import Table

    from autoscaling.bench.control import decisions, routes, widened
    from autoscaling.simulator.fleet_setup import described
    from cluster.config import FleetConfig

    fleet = described(FleetConfig.load(config), accelerator, only=None, profiles=None, cold_start_s={})
    wide = widened(fleet)
    figures = [*(routes(wide, count) for count in (1, 8, 64, 512)), *(decisions(wide, count) for count in (64, 1000))]
    table = Table(title=f"{len(wide.variants)} variants, each with a measured profile", title_justify="left")
    for column in ("what", "replicas", "median", "bound"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for one in figures:
        bound = "" if one.bound_s is None else f"{one.bound_s * 1e6:,.0f} us"
        table.add_row(one.what, str(one.num_replicas), f"{one.median_s * 1e6:,.0f} us", bound)
    Console().print(table)


def plan(
    config: Annotated[
        Path | None, typer.Argument(help="fleet.yaml; without it ./fleet.yaml, else the built-in.")
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option(help="Plan for this hardware, such as H100-80G, instead of this host's.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help=f"Tokens a sequence typically holds; {TYPICAL_CONTEXT} if not given.")
    ] = None,
) -> None:
    """The memory formula and the roofline for this model and hardware: capacity, speed, best batch and cost."""
    from rich.console import Console

    from autoscaling.plan_tables import report
    from autoscaling.planner import most_replicas, slice_of
    from cluster.config import FleetConfig
    from cluster.model_config import shape_of

    fleet = FleetConfig.load(config)
    hardware = _hardware(fleet, accelerator)
    shape = shape_of(fleet.model.source, fleet.engine.max_context)
    part = slice_of(fleet, hardware, most_replicas(fleet))
    plans = [_planned(fleet, shape, hardware, part, variant, context) for variant in fleet.variants.values()]
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    console.print(report(_title(fleet, shape, hardware, part), plans), highlight=False)


def _hardware(fleet: FleetConfig, name: str | None) -> Accelerator:
    """The file's price is for the file's hardware."""
    from cluster.accelerators import accelerator_named

    section = fleet.accelerator
    if name is None or name == section.name:
        return accelerator_named(section.name, section.price_per_hour)
    return accelerator_named(name)


def _planned(
    fleet: FleetConfig,
    shape: ModelShape,
    hardware: Accelerator,
    part: Slice,
    variant: Variant,
    context: int | None,
) -> VariantPlan:
    from autoscaling.plan_tables import VariantPlan
    from autoscaling.planner import memory_plan
    from cluster.cost_model import CostModel
    from cluster.kv_capacity import kv_capacity
    from cluster.models import cache_dir, short_name
    from cluster.profile import newest_profile

    memory = memory_plan(fleet, shape, hardware, part)
    capacity = kv_capacity(shape, variant, hardware, memory)
    names = {fleet.model.source, fleet.model.name, short_name(fleet.model.source)}
    profile = newest_profile(cache_dir() / "profiles", names, variant.name, hardware.name, part.threads)
    model = CostModel(shape, variant, hardware, share=part.compute_share, kv_dtype=memory.kv_dtype, profile=profile)
    held = min(context or TYPICAL_CONTEXT, memory.max_context)
    best = model.best_batch(
        held,
        kv_capacity_tokens=capacity.tokens,
        max_sequences=memory.max_sequences,
        block_size=memory.block_size,
    )
    return VariantPlan(model=model, capacity=capacity, memory=memory, context_tokens=held, best=best, profile=profile)


def _title(fleet: FleetConfig, shape: ModelShape, hardware: Accelerator, part: Slice) -> str:
    peaks = ", ".join(f"{name} {value / 1e12:,.2f}" for name, value in hardware.flops.items())
    return (
        f"{fleet.model.name}: {shape.params / 1e6:,.1f} M parameters, {shape.layers} layers, {shape.kv_heads} of"
        f" {shape.heads} heads keep K and V\n"
        f"{hardware.name}: {hardware.memory_bytes / 1e9:,.1f} GB, {hardware.bandwidth_bytes_per_s / 1e9:,.1f} GB/s,"
        f" TFLOP/s {peaks}, ${hardware.price_per_hour:g}/h\n{part.arithmetic}"
    )


def explain(
    log: Annotated[Path, typer.Argument(help="A decision log, one JSON line a decision.")],
    at: Annotated[
        str | None, typer.Option(help="The decision in force at this time (UTC), such as '2026-11-22 14:05:00'.")
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Make every decision again from what was seen, and compare.")
    ] = False,
) -> None:
    """Why the fleet grew or shrank: every change in a line, or one decision with its arithmetic."""
    from autoscaling.decision_log import entries
    from autoscaling.explanation import changes, explain, in_force

    if replay:
        _replay(log)
    elif at is not None:
        typer.echo(explain(in_force(entries(log), at)))
    else:
        for line in changes(entries(log)):
            typer.echo(line)


def _replay(log: Path) -> None:
    from autoscaling.decision_log import replay
    from autoscaling.explanation import headline
    from cluster.errors import UserError

    count = 0
    for replayed in replay(log):
        count += 1
        if not replayed.is_same:
            raise UserError(
                f"{log}: decision {count} is another now ({headline(replayed.entry)}; again: {replayed.again.reason});"
                " the log was made by another version"
            )
    typer.echo(f"{log}: {count} decisions, all the same again")
