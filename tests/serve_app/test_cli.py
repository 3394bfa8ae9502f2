"""The commands as they are typed."""

from __future__ import annotations

from pathlib import Path

import typer
from typer.testing import CliRunner

from serve_app.auth import KeyFileGuard
from serve_app.cli import register


def test_keys_create_prints_a_key_that_works(keys_file: Path) -> None:
    app = typer.Typer()
    register(app)
    done = CliRunner().invoke(app, ["keys", "create", "--name", "ann", "--file", str(keys_file)])
    assert done.exit_code == 0
    assert KeyFileGuard(keys_file).caller(f"Bearer {done.output.strip()}")


def test_every_command_has_a_line_of_help() -> None:
    app = typer.Typer()
    register(app)
    help_text = CliRunner().invoke(app, ["--help"]).output
    for command in ("serve", "top", "keys", "demo"):
        assert command in help_text
