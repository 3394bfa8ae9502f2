"""Runs the cells of the engine's benchmark one after another and gathers the report; it prints nothing but progress."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from cluster.accelerators import Accelerator
from cluster.cost_model import CostModel
from cluster.engine_spec import EngineSpec
from cluster.model_shape import ModelShape
from cluster.profile import StepShape
from cluster.variants import Variant
from engine.bench.cells import Cell
from engine.bench.report import Report, Row

KV_LENGTHS = (64, 128, 256, 512, 1024, 2048)
PREFIX_LENGTHS = (256, 1024, 2048)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBench:
    """What to measure, on which checkpoint."""

    model: str
    checkpoint: Path
    accelerator: Accelerator
    variants: tuple[Variant, ...]
    threads: tuple[int, ...]
    batches: tuple[int, ...]
    peers: tuple[str, ...] = ("bfloat16", "float32")

    def run(self, console: Console) -> Report:
        rows = []
        for threads in self.threads:
            for variant in self.variants:
                console.print(f"[dim]{variant.name}, {threads} threads[/dim]")
                rows.append(self._own(variant, threads))
            for dtype in self.peers:
                console.print(f"[dim]transformers {dtype}, {threads} threads[/dim]")
                rows.append(self._peer(dtype, threads))
        console.print("[dim]KV cache and prefix hits[/dim]")
        most = max(self.threads)
        return Report(
            model=self.model,
            accelerator=self.accelerator.name,
            rows=rows,
            kv_cache=run_cell(
                Cell(kind="kv_cache", spec=self._spec(self.variants[0], most, prefix=False), lengths=KV_LENGTHS)
            )["rows"],
            prefix=run_cell(
                Cell(kind="prefix", spec=self._spec(self.variants[0], most, prefix=True), lengths=PREFIX_LENGTHS)
            )["rows"],
        )

    def _spec(self, variant: Variant, threads: int, *, prefix: bool = False) -> EngineSpec:
        return EngineSpec(
            replica_id=f"bench-{variant.name}",
            checkpoint=str(self.checkpoint),
            variant=variant,
            kv_capacity_tokens=16_384,
            max_context=4096,
            num_threads=threads,
            prefix_caching=prefix,
            kv_dtype="fp32" if variant.dtype == "fp32" else "bf16",
        )

    def _own(self, variant: Variant, threads: int) -> Row:
        measured = run_cell(Cell(kind="decode", spec=self._spec(variant, threads), batches=self.batches))
        return Row(
            engine=f"quantfleet {variant.name}",
            threads=threads,
            decode_tokens_per_s=_by_batch(measured),
            bound_tokens_per_s={batch: self._bound(variant, threads, batch) for batch in self.batches},
            prefill_tokens_per_s=measured["prefill_tokens_per_s"],
            rss_bytes=measured["rss_bytes"],
        )

    def _bound(self, variant: Variant, threads: int, batch: int) -> float:
        """Tokens/s of the roofline on as many of the cores; one alone may draw more than its share of the bandwidth."""
        share = threads / (os.cpu_count() or 1)
        spec = self._spec(variant, threads)
        shape = ModelShape.from_hf_config(self.checkpoint, spec.max_context)
        model = CostModel(shape, variant, self.accelerator, share=share, kv_dtype=spec.kv_dtype)
        return batch / model.step_s(StepShape(decode_sequences=batch, kv_tokens=batch * 96))

    def _peer(self, dtype: str, threads: int) -> Row:
        spec = self._spec(self.variants[0], threads)
        measured = run_cell(Cell(kind="peer", spec=spec, batches=self.batches, peer_dtype=dtype))
        return Row(
            engine=f"transformers {dtype}",
            threads=threads,
            decode_tokens_per_s=_by_batch(measured),
            prefill_tokens_per_s=measured["prefill_tokens_per_s"],
        )


def _by_batch(measured: dict[str, Any]) -> dict[int, float]:
    return {int(batch): rate for batch, rate in measured["decode_tokens_per_s"].items()}


def run_cell(cell: Cell) -> dict[str, Any]:
    """Runs one cell in a fresh process with its own thread counts; raises CalledProcessError where it fails."""
    threads = str(cell.spec.num_threads)
    env = os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-m", "engine.bench.cells", msgspec.json.encode(cell).decode()]
    finished = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = msgspec.json.decode(finished.stdout.splitlines()[-1])
    return result
