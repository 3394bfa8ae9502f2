"""The commands serve, top, keys create, ray-env and demo; it knows their options and leaves the work to others."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[
    Path | None, typer.Argument(help="fleet.yaml; without it ./fleet.yaml, else the built-in default.")
]


def register(app: typer.Typer) -> None:
    app.command()(serve)
    app.command()(top)
    app.command()(demo)
    keys = typer.Typer(help="API keys.", no_args_is_help=True)
    keys.command("create")(create)
    app.add_typer(keys, name="keys")
    app.command("ray-env")(ray_env)


def serve(
    config: ConfigArgument = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (http.host).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (http.port).", min=0, max=65535)] = None,
) -> None:
    """Serve the fleet over an OpenAI-compatible API until Ctrl-C or SIGTERM."""
    from rich.console import Console

    from cluster.config import FleetConfig
    from serve_app.deploy import fleet

    console = Console(stderr=True)
    try:
        with fleet(FleetConfig.load(config).at(host, port), console=console) as running:
            typer.echo(usage_example(running.base_url, running.config.model.name, bool(running.config.auth.keys_file)))
            if running.decision_log is not None:
                typer.echo(f"Every scaling decision: quantfleet explain {shlex.quote(str(running.decision_log))}")
            if running.config.metrics.enabled:
                typer.echo(f"Metrics for Prometheus: {' '.join(running.metrics)}")
            while True:
                time.sleep(3600)
    except SystemExit:
        console.print("ended")


def top(
    url: Annotated[str, typer.Option(help="The fleet's address.")] = "http://127.0.0.1:8000",
    period_s: Annotated[float, typer.Option("--period-s", help="Seconds between two looks.", min=0.2)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
) -> None:
    """Watch a running fleet in the terminal, until Ctrl-C; its key, if it wants one, in QUANTFLEET_API_KEY."""
    from rich.console import Console

    from serve_app.top import FleetClient, api_key, show, show_once

    client = FleetClient(url, api_key())
    if once:
        show_once(client, Console())
    else:
        show(client, Console(), period_s=period_s)


def ray_env(
    folder: Annotated[Path | None, typer.Option(help="Where HAProxy's wrapper is kept; the cache folder.")] = None,
) -> None:
    """Print the settings that every host of a Ray cluster needs before `ray start`: eval "$(quantfleet ray-env)"."""
    from cluster.models import cache_dir
    from serve_app.ray_settings import haproxy_without_splice, host_environment

    folder = (folder or cache_dir()).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in host_environment(haproxy_without_splice(folder)).items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def usage_example(base_url: str, model: str, needs_key: bool) -> str:
    key = "YOUR_KEY" if needs_key else "none"
    header = f" -H 'Authorization: Bearer {key}'" if needs_key else ""
    return f"""
curl {base_url}/chat/completions{header} -H 'Content-Type: application/json' \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 40}}'

from openai import OpenAI
client = OpenAI(base_url="{base_url}", api_key="{key}")
messages = [{{"role": "user", "content": "Hello"}}]
answer = client.chat.completions.create(model="{model}", messages=messages, max_tokens=40)
print(answer.choices[0].message.content)

Ctrl-C ends it."""


def create(
    name: Annotated[str, typer.Option(help="Whose key it is; it stands in the file beside the hash.")] = "default",
    file: Annotated[Path, typer.Option(help="The file that auth.keys_file of fleet.yaml names.")] = Path("keys.jsonl"),
) -> None:
    """Create an API key: printed once, only its hash is kept."""
    from serve_app.auth import create_key

    typer.echo(create_key(file, name))


def demo(config: ConfigArgument = None) -> None:
    """Run the main job end to end: a fleet, requests of every SLO class, one batch job."""
    from rich.console import Console

    from serve_app.demo import load_config, run_demo

    run_demo(load_config(config), Console())
