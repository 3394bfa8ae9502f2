"""What the tests of the GPU's kernels share: the device, fresh random inputs, the measure of an error."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def device() -> str:
    """The GPU, or the CPU under Triton's interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(20261122)
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # an illegal access belongs to the test that made it


@pytest.fixture
def relative_error():
    """||out - reference|| / ||reference|| in float64; NaN where an element was never written."""

    def measure(out: Tensor, reference: Tensor) -> float:
        out, reference = out.double(), reference.double().to(out.device)
        return float((out - reference).norm() / reference.norm())

    return measure
