"""The GPU's benchmark table without a GPU: bounds, lines, filters, errors; the timer itself on a GPU."""

from types import SimpleNamespace

import pytest
import torch

from kernels.bench import gpu
from kernels.bench.case import Case
from kernels.bench.gpu import Card, Line

CARD = Card(name="card", bytes_per_s=2e12, copy_bytes_per_s=2e12, read_bytes_per_s=1e12, flops_per_s={"bf16": 5e14})


def case(operation: str = "copy", **changes: object) -> Case:
    fields = {"shape": "4 x 4", "calls": [lambda: None], "bytes": 2_000_000, "flops": 5_000_000} | changes
    return Case(operation=operation, **fields)


def shown(cases: list[Case | Line], timer: gpu.Timer = lambda calls: 2e-6, **options: object) -> list[Line]:
    lines: list[Line] = []
    gpu.report(iter(cases), CARD, timer, show=lines.append, **options)
    return lines


def test_bound_is_the_larger_of_bytes_and_operations():
    assert gpu.bound_s(case(), CARD) == (1e-6, "TB/s")
    assert gpu.bound_s(case(flops=5_000_000_000), CARD) == (1e-5, "TFLOP/s")
    assert gpu.bound_s(case(flops=5_000_000_000, flops_dtype="fp8"), CARD) == (1e-6, "TB/s")


def test_a_line_has_share_rate_and_ratio():
    times = iter((2e-6, 3e-6))
    (line,) = shown([case(peer="torch", peer_calls=[lambda: None])], lambda calls: next(times))
    assert line.share_of_bound == pytest.approx(0.5)
    assert line.rate == pytest.approx(1e12)
    text = gpu.text_of(line)
    assert "2.0" in text
    assert "50%" in text
    assert "1.50x  torch" in text


def test_an_error_is_a_line_and_the_run_goes_on():
    def timer(calls):
        return calls[0]()

    def fails():
        raise RuntimeError("no such kernel\nand more")

    lines = shown([case("bad", calls=[fails]), case("good", calls=[lambda: 1e-6], peer_calls=[fails])], timer)
    assert gpu.text_of(lines[0]).endswith("! RuntimeError: no such kernel")
    assert lines[1].seconds == 1e-6
    assert lines[1].errors == ["peer: RuntimeError: no such kernel"]


def test_only_and_budget():
    cases = [case("gemv bf16"), case("gemv int8"), case("attention")]
    assert [line.operation for line in shown(cases, only=["int8", "^att"])] == ["gemv int8", "attention"]
    assert "budget" in shown(cases, budget_s=-1)[0].operation


def test_a_module_that_fails_is_a_line(monkeypatch):
    names = [SimpleNamespace(name="gpu_missing"), SimpleNamespace(name="cpu")]
    monkeypatch.setattr(gpu.pkgutil, "iter_modules", lambda path: names)
    (line,) = gpu.cases_of_modules()
    assert line.operation == "gpu_missing"
    assert "ModuleNotFoundError" in line.errors[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_timer_on_a_gpu():
    tensors = torch.zeros(4, 64 * 2**20, device="cuda").unbind()
    seconds = gpu.seconds_per_call([t.zero_ for t in tensors])
    assert 2e-5 < seconds < 5e-3
