"""What a process keeps of itself while it is a driver of Ray: environment and signal handlers; it starts no Ray."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """os.environ with the settings inside, as it was outside."""
    with unchanged(*settings):
        os.environ.update(settings)
        yield


@contextmanager
def unchanged(*names: str) -> Iterator[None]:
    """Whatever becomes of them inside: ray.init sets RAY_AUTH_MODE, and a second job would take it for the user's."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def keeping_signal_handlers() -> Iterator[None]:
    """ray.init sets its own, and the one for SIGTERM ends the process without its `finally`, so without a drain."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)
