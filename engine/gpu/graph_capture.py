"""Records launches as a CUDA graph, warmed up before; it knows no step."""

from __future__ import annotations

from collections.abc import Callable

import torch

WARM_UPS = 2
"""Plain runs before a capture: kernels are compiled and cuBLAS takes its workspace outside of the graph."""


def captured(launch: Callable[[], None], pool: tuple[int, int], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """`stream` is for the warm-up; graphs of one `pool` share its memory, so they must not run at the same time."""
    # The warm-up's stream knows nothing of what the main one still has to do: the state's zeros, the weights.
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        launch()
    return graph
