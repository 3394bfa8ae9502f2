"""The embedded model's folder, made once in this machine's cache, and that of a tiny one, made anew in each session."""

from pathlib import Path

import pytest

from engine.checkpoint import ensure_checkpoint
from tests.batch_jobs.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return ensure_checkpoint("embedded:smollm2-135m")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(folder)
    return folder
