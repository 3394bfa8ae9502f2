"""The process that works on a batch ends with its parent, when it is asked to, and at a bad order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.config import FleetConfig
from serve_app.batches.batch_folder import BatchFolder
from serve_app.batches.child import Child
from serve_app.batches.exit_codes import BUSY, ORPHANED

ROOT = Path(__file__).parents[3]


@pytest.fixture
def child(new_batch: Callable[..., BatchFolder], batch_config: FleetConfig) -> Iterator[Child]:
    """It waits for its input to be written, for ever."""
    batch = new_batch()
    batch.input.unlink()
    os.mkfifo(batch.input)
    child = Child.start(batch, "check", batch_config, {**os.environ, "PYTHONPATH": str(ROOT)})
    while not (batch.path / "lock").exists():
        assert child.exit_code is None, batch.log.read_text()
        time.sleep(0.02)
    yield child
    child.kill()


def test_it_ends_with_its_parent(child: Child) -> None:
    assert child.process.stdin is not None
    child.process.stdin.close()  # as the kernel does when the parent is killed
    assert child.process.wait(10) == ORPHANED


def test_it_ends_when_asked_and_lets_go_of_the_batch(child: Child, batch_config: FleetConfig) -> None:
    second = Child.start(child.batch, "check", batch_config, {**os.environ, "PYTHONPATH": str(ROOT)})
    assert second.process.wait(20) == BUSY
    child.end(time.time())
    assert child.process.wait(10) < 0
    assert child.was_asked_to_end
    with child.batch.held():
        assert not child.batch.state.is_over
