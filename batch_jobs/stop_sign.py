"""A sign that every task of a job sees on whatever node it runs: begin nothing new; it ends nothing by itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

LOOK_TIMEOUT_S = 30.0
LISTEN_S = 0.5


class _Sign:
    """The Ray actor behind it."""

    def __init__(self) -> None:
        self._is_up = False

    def put_up(self) -> None:
        self._is_up = True

    def is_up(self) -> bool:
        return self._is_up


class StopSign:
    """Made by the driver, pickled to the tasks. It stands on the driver's own host: the loss of any other, which a job
    survives, would else take the sign with it, and a task that cannot see it fails."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Sign).remote()

    def put_up(self) -> None:
        self._actor.put_up.remote()

    def is_up(self) -> bool:
        """About a millisecond; for each slice of rows, not for each row."""
        import ray

        return bool(ray.get(self._actor.is_up.remote(), timeout=LOOK_TIMEOUT_S))


@contextmanager
def put_up_by_signals(sign: StopSign) -> Iterator[threading.Event]:
    """SIGINT and SIGTERM put the sign up, a second one is a KeyboardInterrupt; the event tells of the first.

    A handler runs between any two instructions, so it only sets the event; a thread tells Ray. Outside the main thread,
    where Python takes no handlers, signals stay whoever's they are.
    """
    asked, over = threading.Event(), threading.Event()

    def tell() -> None:
        while not over.is_set():
            if asked.wait(LISTEN_S):
                sign.put_up()
                return

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    threading.Thread(target=tell, name="stop-sign", daemon=True).start()
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield asked
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)
