"""Measurements as Ray tasks, each in a process of its own that tells how far it is; it measures nothing itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from cluster.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class News(Generic[Result]):
    """One step more of the task of that name, or with a result its last word."""

    name: str
    result: Result | None


def run_tasks(
    measure: Callable[[Task], Iterator[Result | None]], tasks: Mapping[str, Task], *, at_once: int, num_gpus: float
) -> Iterator[News[Result]]:
    """What each task yields, as it comes: None for a step, then its result; at most `at_once` of them run.

    No task claims logical CPUs: beside a fleet none may be left, and Ray would wait for one for ever. A process ends
    with its task (max_calls), so that one model's memory is never another's.
    """
    options = {"num_cpus": 0, "num_returns": "streaming", "max_calls": 1, "max_retries": 0}
    remote = ray.remote(**options, **({"num_gpus": num_gpus} if num_gpus else {}))(measure)
    waiting = deque(tasks.items())
    running: dict[Any, str] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            name, task = waiting.popleft()
            running[remote.remote(task)] = name
        (stream,), _ = ray.wait(list(running), num_returns=1)
        name = running[stream]
        try:
            result = ray.get(next(stream))
        except StopIteration:
            del running[stream]
        except Exception as error:
            raise in_one_line(name, error) from error
        else:
            yield News(name=name, result=result)


def in_one_line(name: str, error: Exception) -> Exception:
    """A task's failure as its driver raises it: a mistake or a want of memory as a UserError, a bug as it is."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, UserError):
        return UserError(f"{name}: {cause}")
    if isinstance(cause, ArithmeticError):
        return UserError(f"{name}: {cause}; make the checkpoint anew")
    if isinstance(cause, OutOfMemoryError | WorkerCrashedError | MemoryError):
        return UserError(
            f"{name}: its process was ended, most likely for want of memory; evaluate fewer variants at once"
        )
    return error
