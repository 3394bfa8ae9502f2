"""The number of threads of the CPU path, chosen once a process; knows neither what they compute nor torch's threads."""

from functools import cache
from typing import Any


@cache
def _pool() -> Any:
    from kernels.cpu import pool

    return pool


def set_num_threads(num_threads: int) -> None:
    """One, the default, starts no thread. The result of no operation depends on it."""
    if num_threads < 1:
        raise ValueError(f"num_threads is {num_threads}; it must be at least 1")
    _pool().set_num_threads(num_threads)


def num_threads() -> int:
    return int(_pool().num_threads())
