"""The embedded model's folder, fetched and converted once in this machine's cache."""

from pathlib import Path

import pytest

from engine.checkpoint import ensure_checkpoint


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return ensure_checkpoint("embedded:smollm2-135m")
