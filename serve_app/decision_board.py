"""The newest scaling decision, between Serve's controller, which makes it, and the ingresses, which follow it.

A named actor, because Serve carries numbers from replicas to its controller and nothing the other way round.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import ray
from ray.actor import ActorHandle

from autoscaling.scaling import ScalingDecision

NAME, NAMESPACE = "scaling-decisions", "quantfleet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    at_s: float
    """Unix time of the controller's host."""
    decision: ScalingDecision
    dry_run: bool
    log_path: str | None


def packed(posted: Posted) -> bytes:
    return msgspec.json.encode(posted)


def unpacked(data: bytes) -> Posted:
    return msgspec.json.decode(data, type=Posted)


class DecisionBoard:
    def __init__(self) -> None:
        self._posted: bytes | None = None

    def post(self, posted: bytes) -> None:
        self._posted = posted

    def read(self) -> bytes | None:
        return self._posted


def open_board() -> ActorHandle[Any]:
    """Detached, so that it outlives the controller that made it; restarted where it was lost, and filled again."""
    actor = ray.remote(num_cpus=0, max_restarts=-1)(DecisionBoard)
    return actor.options(name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True).remote()


def find_board() -> ActorHandle[Any]:
    """ValueError where there is none yet."""
    return ray.get_actor(NAME, namespace=NAMESPACE)


def remove_board() -> None:
    with suppress(ValueError):
        ray.kill(find_board())
