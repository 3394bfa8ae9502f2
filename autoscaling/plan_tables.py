"""The tables of `quantfleet plan`: what each variant costs in memory and time; it decides and measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cluster.cost_model import BestBatch, CostModel, decodes
from cluster.kv_capacity import KvCapacity, MemoryPlan
from cluster.profile import Profile

BATCHES = (1, 8, 32, 128)
SHORT_BOUND = {"memory": "mem", "arithmetic": "arith", "overhead": "t0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantPlan:
    """One variant on one replica's share of the accelerator."""

    model: CostModel
    capacity: KvCapacity
    memory: MemoryPlan
    context_tokens: int
    """What a sequence typically holds."""
    best: BestBatch
    profile: Profile | None

    @property
    def name(self) -> str:
        return self.model.variant.name

    @property
    def sequences_reserved(self) -> int:
        """Where every sequence reserves the whole context, as engines without paging do."""
        return self.capacity.tokens // _to_block(self.memory.max_context, self.capacity.block_size)

    @property
    def sequences_paged(self) -> int:
        return self.capacity.tokens // _to_block(self.context_tokens, self.capacity.block_size)

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.memory.token_budget / self.model.prefill_s(self.memory.token_budget)


def report(title: str, plans: Sequence[VariantPlan]) -> RenderableType:
    return Group(
        Text(title, style="bold"),
        Text(),
        memory_table(plans),
        speed_table(plans),
        price_table(plans),
        Text(),
        *[paragraph for plan in plans for paragraph in arithmetic(plan)],
    )


def memory_table(plans: Sequence[VariantPlan]) -> Table:
    context, longest = plans[0].context_tokens, plans[0].memory.max_context
    table = _table("Memory of one replica")
    columns = ["variant", "weights held", "read per step", "KV per token", "KV capacity"]
    columns += [f"sequences, reserved ({longest})", f"paged ({context})", "paging holds"]
    for column in columns:
        table.add_column(column, justify="left" if column == "variant" else "right")
    for plan in plans:
        shape, variant, capacity = plan.model.shape, plan.model.variant, plan.capacity
        kind = plan.model.accelerator.kind
        table.add_row(
            plan.name,
            _megabytes(variant.resident_bytes(shape, kind)),
            _megabytes(variant.read_bytes(shape, kind)),
            f"{capacity.bytes_per_token:,} B",
            f"{capacity.tokens:,} tokens",
            f"{plan.sequences_reserved:,}",
            f"{plan.sequences_paged:,}",
            f"{plan.sequences_paged / max(1, plan.sequences_reserved):.1f}x as many",
        )
    return table


def speed_table(plans: Sequence[VariantPlan]) -> Table:
    context = plans[0].context_tokens
    table = _table(f"Predicted step at {context} tokens of context, and what bounds it")
    table.caption = "mem: reading; arith: arithmetic; t0: what no batch changes; !: more sequences than the KV holds"
    table.add_column("variant")
    for batch in BATCHES:
        table.add_column(f"batch {batch}", justify="right")
    for column in ("B_ridge", "B_best", "what limits it", "prompts"):
        table.add_column(column, justify="right")
    for plan in plans:
        table.add_row(
            plan.name,
            *[_step(plan, batch) for batch in BATCHES],
            f"{plan.model.ridge_batch():.1f}",
            str(plan.best.batch),
            plan.best.limit,
            f"{plan.prefill_tokens_per_s:,.0f} tokens/s",
        )
    return table


def price_table(plans: Sequence[VariantPlan]) -> Table:
    table = _table("What serving is judged by, one replica")
    table.add_column("variant")
    for column in ("latency per token, batch 1", "B_best", "tokens/s, batch 1", "B_best"):
        table.add_column(column, justify="right")
    for column in ("cost per million tokens, batch 1", "B_best"):
        table.add_column(column, justify="right")
    for plan in plans:
        context = plan.context_tokens
        alone_s = plan.model.decode_step_s(1, context)
        table.add_row(
            plan.name,
            f"{alone_s * 1e3:.1f} ms",
            f"{plan.best.step_s * 1e3:.1f} ms",
            f"{1 / alone_s:,.0f}",
            f"{plan.best.tokens_per_s:,.0f}",
            f"${plan.model.cost_per_million_tokens(1, context):,.3f}",
            f"${plan.model.cost_per_million_tokens(plan.best.batch, context):,.3f}",
        )
    return table


def arithmetic(plan: VariantPlan) -> list[RenderableType]:
    """The formula with this variant's numbers in it."""
    model, best, context = plan.model, plan.best.batch, plan.context_tokens
    step = model.explain(decodes(best, context))
    accelerator, shape, variant = model.accelerator, model.shape, model.variant
    bytes_per_token = plan.capacity.bytes_per_token
    lines = [
        f"kv_bytes_per_token = 2 x {shape.layers} layers x {shape.kv_heads} kv heads x {shape.head_dim}"
        f" x {bytes_per_token // shape.kv_bytes_per_token(1)} B = {bytes_per_token:,} B",
        f"kv_capacity_tokens = {plan.capacity.arithmetic()}",
        f"B_ridge = {model.peak / 1e9:,.1f} GFLOP/s ({variant.flops_dtype}) x {model.weights_read_bytes / 1e6:,.1f} MB"
        f" / (2 x {model.params_read / 1e6:,.1f} M x {model.bandwidth / 1e9:,.1f} GB/s) = {model.ridge_batch():.1f}",
        f"step({best} decodes of {context}) = t0 {step.t0_s * 1e3:.2f} + linears {step.linear_s * 1e3:.2f}"
        f" + attention {step.attention_s * 1e3:.2f} = {step.total_s * 1e3:.2f} ms, bound by {step.bound};"
        f" {_source(plan)}",
        f"B_best = {best}: {plan.best.arithmetic}",
        f"cost = ${accelerator.price_per_hour:g}/h x share {model.share:g} / 3600 x {step.total_s:.4f} s / {best} x 1e6"
        f" = ${model.cost_per_million_tokens(best, context):,.3f} per million tokens",
    ]
    return [Text(plan.name, style="bold"), *[Padding(Text(line), (0, 0, 0, 2), expand=False) for line in lines], Text()]


def _source(plan: VariantPlan) -> str:
    if plan.profile is None:
        return "by the roofline, not measured here"
    return f"corrected by {len(plan.profile.points)} points measured {plan.profile.measured_at}"


def _step(plan: VariantPlan, batch: int) -> str:
    step = plan.model.explain(decodes(batch, plan.context_tokens))
    mark = "" if batch <= plan.sequences_paged else " !"
    return f"{step.total_s * 1e3:,.1f} ms {SHORT_BOUND[step.bound]}{mark}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold")


def _megabytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 10e9 else f"{count / 1e6:,.1f} MB"


def _to_block(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size) * block_size
