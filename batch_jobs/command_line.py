"""What the jobs' commands share: the option --config, and an end by a signal; it registers no command."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

INTERRUPTED = 130
"""What a shell reports for a command ended by SIGINT."""

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="fleet.yaml; else ./fleet.yaml, else the built-in default.")
]


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends a job as SIGINT does, also where SIGINT was inherited as ignored (a shell's background job)."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
