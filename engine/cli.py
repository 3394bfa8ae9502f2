"""The engine's commands: `models`, `models pull`, `bench engine`; each imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    models = typer.Typer(help="Models that are known, and those on this machine's disk.", invoke_without_command=True)
    models.callback()(list_models)
    models.command("pull")(pull)
    app.add_typer(models, name="models")


def register_bench(bench: typer.Typer) -> None:
    bench.command("engine")(bench_engine)
    bench.command("kernels")(bench_kernels)


def list_models(context: typer.Context) -> None:
    """Models that are known, and those on this machine's disk."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console
    from rich.table import Table

    from cluster.models import EMBEDDED_PREFIX, KNOWN, cache_dir, on_disk
    from engine.checkpoint import converted

    table = Table(title=f"Models (cache: {cache_dir()})", title_justify="left")
    for heading in ("source", "license", "downloaded", "ready to serve"):
        table.add_column(heading, overflow="fold")
    for name, model in KNOWN.items():
        source = EMBEDDED_PREFIX + name
        table.add_row(source, model.license, str(on_disk(source) or "no"), str(converted(source) or "no"))
    console = Console()
    console.print(table)
    console.print(
        "Also: any folder or Hugging Face id of a Llama, Mistral, Qwen2, Qwen3 or SmolLM2 model in safetensors."
    )


def pull(
    source: Annotated[str, typer.Argument(help="embedded:NAME, a Hugging Face id (owner/name), or a folder.")],
) -> None:
    """Fetch a model and make it ready to serve."""
    from rich.console import Console

    from cluster.model_shape import ModelShape
    from engine.checkpoint import ensure_checkpoint

    console = Console()
    with console.status(f"fetching {source}"):
        folder = ensure_checkpoint(source)
        # Of any context: a sliding window is refused where fleet.yaml asks for a longer one.
        shape = ModelShape.from_hf_config(folder, max_context=1)
    console.print(f"{source}: {shape.params / 1e6:.0f} M parameters, ready in {folder}")


def bench_engine(
    config: Annotated[
        Path | None, typer.Argument(help="fleet.yaml; else ./fleet.yaml, else the built-in default.")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(help="Threads of the engine; may be given several times.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes; may be given several times.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Variants; all of the configuration, if not given.")] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="Data types of transformers' generate in the same run; none: no peer.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw tokens/s over sequence length, with and without the KV cache, as PNG.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the figures as JSON.")] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="On the GPU: made-up weights in the shape of Llama-3.1-8B, no download.")
    ] = False,
    requests: Annotated[int, typer.Option(help="With --gpu: of the throughput run; 0 leaves it out.")] = 256,
    profile: Annotated[
        list[int] | None, typer.Option(help="With --gpu: batch whose decode step is listed kernel by kernel.")
    ] = None,
) -> None:
    """Tokens/s of the engine per variant, next to their bound and to transformers on the same weights."""
    if gpu:
        from rich.console import Console

        from engine.bench.gpu import bench_gpu

        bench_gpu(variant or (), requests, profile or (), output, Console(width=160))
        return
    _bench_cpu(config, threads, batch, variant, peer, plot, output)


def bench_kernels(
    only: Annotated[list[str] | None, typer.Option(help="Operations whose name matches; may be given often.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the figures as JSON.")] = None,
) -> None:
    """Every kernel's time beside its bound and its peer: the GPU's where there is one, else the CPU's."""
    import subprocess
    import sys

    from cluster.accelerators import detect

    options = [argument for pattern in only or () for argument in ("--only", pattern)]
    options += ["--json", str(output)] if output is not None else []
    is_gpu = detect().kind == "gpu"
    done = subprocess.run([sys.executable, "-m", "kernels.bench", *(options if is_gpu else [])], check=False)
    raise typer.Exit(done.returncode)


def _bench_cpu(
    config: Path | None,
    threads: list[int] | None,
    batch: list[int] | None,
    variant: list[str] | None,
    peer: list[str] | None,
    plot: Path | None,
    output: Path | None,
) -> None:
    import os

    from rich.console import Console

    from cluster.accelerators import accelerator_named
    from cluster.config import FleetConfig
    from cluster.errors import UserError
    from engine.bench.report import plot_kv_cache, print_report
    from engine.bench.run import EngineBench
    from engine.checkpoint import ensure_checkpoint

    fleet = FleetConfig.load(config)
    unknown = set(variant or ()) - set(fleet.variants)
    if unknown:
        raise UserError(f"--variant {min(unknown)}: not in the configuration; it has {', '.join(fleet.variants)}")
    batches = tuple(batch or (1, 8, 32))
    console = Console()
    report = EngineBench(
        model=fleet.model.name,
        checkpoint=ensure_checkpoint(fleet.model.source),
        accelerator=accelerator_named(fleet.accelerator.name, fleet.accelerator.price_per_hour),
        variants=tuple(v for name, v in fleet.variants.items() if not variant or name in variant),
        threads=tuple(threads or (1, os.cpu_count() or 1)),
        batches=batches,
        peers=tuple(name for name in peer or _peer_dtypes() if name != "none"),
    ).run(console)
    print_report(report, batches, console)
    if plot is not None:
        plot_kv_cache(report.kv_cache, plot)
    if output is not None:
        report.write(output)


def _peer_dtypes() -> list[str]:
    """bfloat16 only where the CPU has its instructions: with AVX2 alone torch takes 30 ms a row of a 135M model."""
    cpu_info = Path("/proc/cpuinfo")
    has_bf16 = cpu_info.exists() and "avx512_bf16" in cpu_info.read_text()
    return ["bfloat16", "float32"] if has_bf16 else ["float32"]
