"""`quantfleet bench engine --gpu`: the variants of the Llama-3.1-8B shape on one GPU, beside floor and peer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from cluster.accelerators import Accelerator, detect_gpu
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.model_shape import ModelShape
from cluster.variants import Variant
from engine.bench.gpu_cells import GpuCell, GpuFigures

SHAPE = Path(__file__).parent / "llama-3.1-8b"
VARIANTS = (
    Variant(name="bf16"),
    Variant(name="int4", method="gptq"),
    Variant(name="nf4", method="nf4"),
    Variant(name="fp8", method="fp8"),
    Variant(name="int8", method="int8"),
)
TOKEN_BUDGET = 8192
UTILIZATION = 0.9
MEASURED_READS = 3.118e12
"""Bytes/s that an H100 80GB HBM3 reads (the data sheet says 3.35): what floors are taken from on that card."""
PEERS = {"bf16": (6.60, 8378), "int4": (4.15, 8768), "fp8": (4.28, 10118)}
"""vLLM 0.26.0 on the same work and an H100 80GB HBM3, torch 2.11, full graphs: ms a token, output tokens/s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuBench:
    variants: Sequence[Variant]
    accelerator: Accelerator
    requests: int = 256
    profile_batches: tuple[int, ...] = ()

    def run(self, console: Console) -> dict[str, GpuFigures]:
        found = {}
        for variant in self.variants:
            cell = GpuCell(spec=self._spec(variant), requests=self.requests, profile_batches=self.profile_batches)
            try:
                found[variant.name] = run_cell(cell)
            except subprocess.CalledProcessError as error:
                console.print(f"[red]{variant.name}: the process ended with {error.returncode}[/red]")
                continue
            console.print(f"{variant.name}: {_line(found[variant.name])}")
        return found

    def floor_ms(self, variant: Variant) -> float:
        """Every weight read once, at the bandwidth that was measured for reads."""
        shape = ModelShape.from_hf_config(SHAPE)
        return variant.read_bytes(shape, "gpu") / MEASURED_READS * 1e3

    def _spec(self, variant: Variant) -> EngineSpec:
        return EngineSpec(
            replica_id=f"bench-{variant.name}",
            checkpoint=str(SHAPE),
            load_format="dummy",
            variant=variant,
            kv_capacity_tokens=256 * 2064,
            memory_bytes=int(self.accelerator.memory_bytes * UTILIZATION),
            max_context=2064,
            token_budget=TOKEN_BUDGET,
            max_sequences=256,
            device="cuda",
        )


def run_cell(cell: GpuCell) -> GpuFigures:
    command = [sys.executable, "-m", "engine.bench.gpu_cells", msgspec.json.encode(cell).decode()]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return msgspec.json.decode(finished.stdout.splitlines()[-1], type=GpuFigures, strict=False)


def bench_gpu(
    names: Sequence[str], requests: int, profile_batches: Sequence[int], output: Path | None, console: Console
) -> None:
    known = {variant.name: variant for variant in VARIANTS}
    unknown = set(names) - set(known)
    if unknown:
        raise UserError(f"--variant {min(unknown)}: not benched on a GPU; known are {', '.join(known)}")
    bench = GpuBench(
        variants=[known[name] for name in names or known],
        accelerator=_gpu_here(),
        requests=requests,
        profile_batches=tuple(profile_batches),
    )
    card = _card_name()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "triton"))
    console.print(f"{card}; {versions}; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    figures = bench.run(console)
    console.print(_table(bench, figures, card))
    for name, found in figures.items():
        for batch, kernels in found.kernels.items():
            console.print(_kernel_table(name, batch, kernels))
    if output is not None:
        output.write_text(json.dumps({"card": card, "figures": _plain(figures)}, indent=1))


def _gpu_here() -> Accelerator:
    found = detect_gpu()
    if found is None:
        raise UserError("--gpu: nvidia-smi names no GPU of the registry on this host; leave --gpu out to bench its CPU")
    return found


def _plain(figures: dict[str, GpuFigures]) -> dict[str, Any]:
    return {name: msgspec.to_builtins(found) for name, found in figures.items()}


def _card_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def _line(found: GpuFigures) -> str:
    steps = ", ".join(f"{batch}: {step:.2f}" for batch, step in found.decode_step_ms.items())
    return (
        f"one sequence {found.one_sequence_ms:.3f} ms; {found.output_tokens_per_s:.0f} tok/s in {found.total_s:.1f} s; "
        f"idle {found.idle_share:.1%}, host waits {found.host_waits_share:.0%}; "
        f"prompts {found.prompt_tokens_per_s:.0f} tok/s; decode ms by batch {steps}; start {found.start_s:.1f} s, "
        f"{found.kv_capacity_tokens} KV tokens"
    )


def _table(bench: GpuBench, figures: dict[str, GpuFigures], card: str) -> Table:
    table = Table(title=f"Llama-3.1-8B shape, dummy weights, {card}", title_justify="left")
    for heading in (
        "variant",
        "one sequence, ms",
        "floor",
        "vLLM 0.26",
        f"{bench.requests} requests, tok/s",
        "vLLM 0.26",
        "idle at 32",
    ):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for variant in bench.variants:
        if variant.name not in figures:
            continue
        found, peer = figures[variant.name], PEERS.get(variant.name)
        table.add_row(
            variant.name,
            f"{found.one_sequence_ms:.2f}",
            f"{bench.floor_ms(variant):.2f}",
            f"{peer[0]:.2f}" if peer else "-",
            f"{found.output_tokens_per_s:.0f}",
            f"{peer[1]}" if peer else "-",
            f"{found.idle_share:.1%}",
        )
    return table


def _kernel_table(name: str, batch: int, kernels: list[tuple[str, int, float]]) -> Table:
    table = Table(
        title=f"{name}, {f'decode step of {batch}' if batch else '8 prompts of 1,024'}: where the time goes",
        title_justify="left",
    )
    for heading in ("kernel", "launches", "us a step"):
        table.add_column(heading)
    for kernel, launches, micros in kernels:
        table.add_row(kernel, str(launches), f"{micros:.0f}")
    return table
