"""The pool: every piece runs once however many threads there are, and helpers sleep when there is nothing to do."""

import threading
import time

import psutil
import pytest
import torch

from kernels import threads
from kernels.dense_matmul import dense_matmul, pack_dense


@pytest.fixture
def two_threads() -> None:
    threads.set_num_threads(2)
    yield
    threads.set_num_threads(1)


def test_the_number_is_checked_and_told() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        threads.set_num_threads(0)
    threads.set_num_threads(3)
    assert threads.num_threads() == 3
    threads.set_num_threads(1)
    assert threads.num_threads() == 1


def test_many_launches_give_the_same_bits(two_threads: None) -> None:
    packed, x = pack_dense(torch.randn(512, 64)), torch.randn(3, 64)
    expected = dense_matmul(x, packed)
    for launch in range(3000):
        if launch % 1000 == 0:
            time.sleep(0.01)
        assert torch.equal(dense_matmul(x, packed), expected)


def test_two_python_threads_may_launch(two_threads: None) -> None:
    packed, x = pack_dense(torch.randn(512, 64)), torch.randn(3, 64)
    expected = dense_matmul(x, packed)
    wrong = []

    def work() -> None:
        for _ in range(500):
            if not torch.equal(dense_matmul(x, packed), expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_an_idle_helper_takes_no_time(two_threads: None) -> None:
    packed = pack_dense(torch.randn(512, 64))
    dense_matmul(torch.randn(3, 64), packed)
    time.sleep(0.05)
    before = sum(psutil.Process().cpu_times()[:2])
    time.sleep(0.3)
    assert sum(psutil.Process().cpu_times()[:2]) - before < 0.1
