"""Times the cases of every `kernels.bench.gpu_*` module beside their bound and their peer: `python -m kernels.bench`.

The bound is the larger of bytes over the memory's bandwidth and operations over the matrix units' peak, all measured
first in the same run on random data. A case's calls are captured once in a CUDA graph and replayed: no time of the host
is in them. Lines are printed as they come, and a case that fails prints its error in its line.
"""

import argparse
import importlib
import json
import pkgutil
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

from kernels import bench
from kernels.bench.case import Call, Case

TIMED_REGIONS = 7
REGION_S = 2e-3
Timer = Callable[[Sequence[Call]], float]
"""Seconds per call"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    name: str
    bytes_per_s: float
    """The larger of the two below"""
    copy_bytes_per_s: float
    """Read plus written"""
    read_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    """By dtype; what could not be measured is absent"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    operation: str
    shape: str
    seconds: float | None = None
    rate: float | None = None
    """Bytes or operations a second, whichever bounds"""
    rate_unit: str = ""
    share_of_bound: float | None = None
    peer: str = ""
    peer_seconds: float | None = None
    errors: list[str] = field(default_factory=list)


def seconds_per_call(calls: Sequence[Call]) -> float:
    """The median of several timed regions, each some replays of one graph of all the calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in (calls[0], *calls):  # Triton compiles, libraries allocate their workspaces
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    replays = max(1, round(REGION_S / max(_seconds_of(graph, 1), 1e-7) + 0.5))
    regions = [_seconds_of(graph, replays) for _ in range(TIMED_REGIONS)]
    return statistics.median(regions) / (replays * len(calls))


def _seconds_of(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def measure_card() -> Card:
    """Copies and reads of 4 GiB (less on a small card), products of 8192 x 8192 random matrices."""
    copied, read = _memory_rates()
    torch.cuda.empty_cache()
    peaks = {}
    for dtype, product in _peak_products():
        try:
            peaks[dtype] = 2 * 8192**3 / seconds_per_call([product()])
        except Exception as error:  # an older card has no fp8: the table goes on without
            print(f"no {dtype} peak: {_first_line(error)}", flush=True)
    return Card(
        name=torch.cuda.get_device_name(),
        bytes_per_s=max(copied, read),
        copy_bytes_per_s=copied,
        read_bytes_per_s=read,
        flops_per_s=peaks,
    )


def _memory_rates() -> tuple[float, float]:
    """Bytes a second, copied (read plus written) and read."""
    free, _ = torch.cuda.mem_get_info()
    source, target = torch.randn(2, min(2**30, free // 12), device="cuda").unbind()
    copy_s, read_s = seconds_per_call([partial(target.copy_, source)]), seconds_per_call([source.sum])
    return 2 * source.nbytes / copy_s, source.nbytes / read_s


def _peak_products() -> Iterator[tuple[str, Callable[[], Call]]]:
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16).unbind()

    def fp8() -> Call:
        one = torch.ones((), device="cuda")
        a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        return lambda: torch._scaled_mm(a8, b8, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

    def int8() -> Call:
        a8, b8 = ((40 * t).clamp(-127, 127).to(torch.int8) for t in (a, b))
        return lambda: torch._int_mm(a8, b8.t())

    yield "bf16", lambda: lambda: a @ b.t()
    yield "fp8", fp8
    yield "int8", int8


def bound_s(case: Case, card: Card) -> tuple[float, str]:
    """The least seconds a call can take, and of what."""
    memory = case.bytes / card.bytes_per_s
    peak = card.flops_per_s.get(case.flops_dtype)
    matrix = case.flops / peak if peak else 0.0
    return (memory, "TB/s") if memory >= matrix else (matrix, "TFLOP/s")


def line_of(case: Case, card: Card, timer: Timer) -> Line:
    """Times a case and its peer; an error of either becomes text."""
    errors: list[str] = []

    def timed(calls: Sequence[Call], whose: str) -> float | None:
        try:
            return timer(calls) if calls else None
        except Exception as error:
            errors.append(whose + _first_line(error))
            return None

    seconds = timed(case.calls, "")
    peer_seconds = timed(case.peer_calls, "peer: ")
    bound, unit = bound_s(case, card)
    work = case.bytes if unit == "TB/s" else case.flops
    return Line(
        operation=case.operation,
        shape=case.shape,
        seconds=seconds,
        rate=work / seconds if seconds else None,
        rate_unit=unit,
        share_of_bound=bound / seconds if seconds else None,
        peer=case.peer,
        peer_seconds=peer_seconds,
        errors=errors,
    )


def text_of(line: Line) -> str:
    seconds = f"{1e6 * line.seconds:9.1f}" if line.seconds else f"{'-':>9}"
    rate = f"{line.rate / 1e12:8.2f} {line.rate_unit:7}" if line.rate else " " * 16
    share = f"{line.share_of_bound:6.0%}" if line.share_of_bound else " " * 6
    peer = ""
    if line.peer_seconds:
        ratio = f"{line.peer_seconds / line.seconds:5.2f}x" if line.seconds else ""
        peer = f"{1e6 * line.peer_seconds:9.1f} {ratio:>6}  {line.peer}"
    error = "  ".join(f"! {error}" for error in line.errors)
    return f"{line.operation:40} {line.shape:24}{seconds} {rate}{share}{peer} {error}".rstrip()


def heading() -> str:
    return f"{'operation':40} {'shape':24}{'us':>9} {'rate':>8} {'':7}{'bound':>6}{'peer us':>9} {'ratio':>6}  peer"


def cases_of_modules() -> Iterator[Case | Line]:
    """Cases in the order of the modules' names; of a module that fails, a line with its error."""
    for module in pkgutil.iter_modules(bench.__path__):
        if not module.name.startswith("gpu_"):
            continue
        try:
            yield from importlib.import_module(f"{bench.__name__}.{module.name}").cases()
        except Exception as error:
            yield Line(operation=module.name, shape="", errors=[_first_line(error)])


def report(
    cases: Iterator[Case | Line],
    card: Card,
    timer: Timer,
    *,
    only: Sequence[str] = (),
    budget_s: float = float("inf"),
    show: Callable[[Line], None],
) -> None:
    """Times what any of `only` finds in "operation shape" (all, where there is none) until the budget is spent."""
    patterns = [re.compile(pattern) for pattern in only]
    end = time.monotonic() + budget_s
    for case in cases:
        if time.monotonic() > end:
            show(
                Line(operation="(budget spent)", shape="", errors=[f"{budget_s:g} s; the cases after it were not run"])
            )
            return
        if isinstance(case, Line):
            show(case)
        elif not patterns or any(p.search(f"{case.operation} {case.shape}") for p in patterns):
            show(line_of(case, card, timer))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="REGEX", help="of 'operation shape'; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="card and lines, rewritten after each line")
    parser.add_argument("--budget", type=float, default=240.0, metavar="SECONDS", help="no case starts after it")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    card = measure_card()
    peaks = ", ".join(f"{dtype} {peak / 1e12:.0f}" for dtype, peak in card.flops_per_s.items())
    print(
        f"{card.name}, torch {torch.__version__}: copy {card.copy_bytes_per_s / 1e12:.2f} TB/s, "
        f"read {card.read_bytes_per_s / 1e12:.2f} TB/s; T(FL)OP/s of 8192^3: {peaks}",
        flush=True,
    )
    print(heading(), flush=True)
    lines: list[Line] = []

    def show(line: Line) -> None:
        print(text_of(line), flush=True)
        lines.append(line)
        if options.json:
            options.json.write_text(json.dumps({"card": asdict(card), "lines": [asdict(shown) for shown in lines]}))
        # a kernel's illegal access leaves no context to go on in: the next line would only repeat it
        torch.cuda.synchronize()
        if torch.cuda.memory_reserved() > torch.cuda.mem_get_info()[1] // 2:
            torch.cuda.empty_cache()

    budget = options.budget - (time.monotonic() - start)
    report(cases_of_modules(), card, seconds_per_call, only=options.only, budget_s=budget, show=show)


def _first_line(error: Exception) -> str:
    """Of Triton's compile errors the last, which says why; the first is the position."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1 if lines[0].startswith('at ') else 0][:160]}"


if __name__ == "__main__":
    main()
