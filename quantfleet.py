"""The command line: puts the commands of each folder's cli.py under one name; it knows no command itself."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

import autoscaling.cli
import batch_jobs.bench.cli
import batch_jobs.cli
import engine.cli
import serve_app.bench.cli
import serve_app.cli
import serve_app.dashboards.cli
from cluster.errors import UserError

app = typer.Typer(
    name="quantfleet",
    help="One language model at several precisions behind one SLO router, on Ray.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"quantfleet {version('quantfleet')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


bench = typer.Typer(help="Measure this machine and its models.", no_args_is_help=True)
for folder in (serve_app, batch_jobs, autoscaling, engine):
    folder.cli.register(app)
engine.cli.register_bench(bench)
autoscaling.cli.register_bench(bench)
batch_jobs.bench.cli.register_bench(bench)
serve_app.bench.cli.register_bench(bench)
serve_app.dashboards.cli.register(app)
app.add_typer(bench, name="bench")


def main() -> None:
    """Runs the command; a user's mistake is one line on stderr and exit code 2."""
    try:
        app()
    except UserError as mistake:
        print(f"quantfleet: {mistake}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
