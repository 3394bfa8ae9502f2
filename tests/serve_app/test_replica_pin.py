"""A call goes to the replica it names, or fails at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.replica_pin import ReplicaGone, ReplicaPin


def call_to(replica_id: str) -> Any:
    return SimpleNamespace(kwargs={"replica_id": replica_id}, future=asyncio.get_running_loop().create_future())


def replicas(*names: str) -> list[Any]:
    return [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in names]


async def test_the_named_replica_is_the_only_candidate() -> None:
    pin = ReplicaPin.__new__(ReplicaPin)
    running = replicas("a", "b")
    assert await pin.choose_replicas(running, call_to("b")) == [[running[1]]]


async def test_a_replica_that_does_not_run_is_told_instead_of_waited_for() -> None:
    pin = ReplicaPin.__new__(ReplicaPin)
    call = call_to("c")
    assert await pin.choose_replicas(replicas("a"), call)  # candidates make Serve look at the future
    with pytest.raises(ReplicaGone, match="c is not running"):
        await call.future
