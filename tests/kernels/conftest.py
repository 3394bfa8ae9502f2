"""What the tests of every operation share: a seed, one torch thread, and the check that a row knows no other row."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from kernels import threads


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(42)


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def assert_rows_independent() -> Iterator[Callable[[Callable[[slice], Tensor], int], None]]:
    """Fails unless `operation(rows)` gives the same bits for any slice of the rows, on one thread or several."""

    def check(operation: Callable[[slice], Tensor], num_rows: int) -> None:
        whole = operation(slice(None))
        for start, end in ((0, 1), (num_rows - 1, num_rows), (0, num_rows // 2 + 1), (num_rows // 3, num_rows)):
            part = operation(slice(start, end))
            assert torch.equal(part, whole[start:end]), f"rows {start}..{end} differ alone"
        for num_threads in (2, 3):
            threads.set_num_threads(num_threads)
            assert torch.equal(operation(slice(None)), whole), f"{num_threads} threads differ"
        threads.set_num_threads(1)

    yield check
    threads.set_num_threads(1)
