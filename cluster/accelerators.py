"""Accelerator: memory, bandwidth, arithmetic and price of the what a replica runs on: the registry, and this host."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from cluster.cpu_host import host_speed, int8_gain, usable_cores, usable_memory_bytes
from cluster.errors import UserError, did_you_mean
from cluster.models import cache_dir

MIB = 2**20
TFLOPS = 1e12

Kind = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One GPU, or one host whose CPU does the work."""

    name: str
    kind: Kind
    memory_bytes: int
    bandwidth_bytes_per_s: float
    """Of its memory: the vendor's figure for a GPU, a measured read for a CPU host."""
    flops: Mapping[str, float]
    """Dense peak by dtype: fp32, bf16, int8, fp8 (where it has it)."""
    price_per_hour: float
    """US dollars, on demand; fleet.yaml may say another."""
    cores: int = 0
    """CPU hosts: the cores this process may use."""
    count: int = 0
    """GPUs of this kind on this host; 0 where it was not looked for."""

    def peak(self, dtype: str) -> float:
        """A dtype without units of its own runs at the bf16 rate (fp8 weights on an A100 are widened first)."""
        return self.flops.get(dtype, self.flops["bf16"])


def _gpu(
    name: str, memory_mib: int, tb_per_s: float, price: float, *, bf16: float, eight_bit: Mapping[str, float]
) -> Accelerator:
    """Peaks in TFLOP/s (TOP/s for int8), dense."""
    tflops = {"fp32": bf16 / 16, "bf16": bf16, **eight_bit}
    return Accelerator(
        name=name,
        kind="gpu",
        memory_bytes=memory_mib * MIB,
        bandwidth_bytes_per_s=tb_per_s * 1e12,
        flops={dtype: value * TFLOPS for dtype, value in tflops.items()},
        price_per_hour=price,
    )


# Peaks and bandwidth: the vendors' data sheets, dense figures (half of those "with sparsity"). Memory: nvidia-smi.
# Prices: RunPod's list of March 2026 (deploybase.ai/articles/runpod-gpu-pricing); large clouds ask up to twice that.
_KNOWN = (
    _gpu("A100-80G", 81920, 2.039, 1.39, bf16=312, eight_bit={"int8": 624}),  # SXM
    _gpu("H100-80G", 81559, 3.35, 2.69, bf16=989, eight_bit={"int8": 1979, "fp8": 1979}),  # SXM
    _gpu("H200", 143771, 4.8, 3.59, bf16=989, eight_bit={"int8": 1979, "fp8": 1979}),
    _gpu("L4", 23034, 0.300, 0.44, bf16=121, eight_bit={"int8": 242, "fp8": 242}),
    _gpu("L40S", 46068, 0.864, 0.79, bf16=362, eight_bit={"int8": 733, "fp8": 733}),
    _gpu("RTX-4090", 24564, 1.008, 0.34, bf16=165, eight_bit={"int8": 661, "fp8": 330}),  # fp32 accumulation
)

CPU_CORE_PRICE_PER_HOUR = 0.041
"""AWS m7g.large, 0.0816 dollars for two cores in us-east-1, June 2026; fleet.yaml may say what this host costs."""


def serving_kinds() -> tuple[Kind, ...]:
    """What the engine can run on here: torch's CPU build drives no GPU, whatever the host has."""
    torch = find_spec("torch")  # looked for, not imported: that takes a second
    if torch is None or torch.origin is None:
        return ("cpu",)
    return ("gpu", "cpu") if (Path(torch.origin).parent / "lib" / "libtorch_cuda.so").exists() else ("cpu",)


def known_accelerators() -> dict[str, Accelerator]:
    """The registry: hardware one may plan for without having it."""
    return {accelerator.name: accelerator for accelerator in _KNOWN}


def accelerator_named(name: str, price_per_hour: float | None = None) -> Accelerator:
    """One of the registry; `auto` and `cpu` are this host."""
    if name in ("auto", "cpu"):
        found = detect() if name == "auto" else detect_cpu()
    else:
        known = known_accelerators()
        if name not in known:
            raise UserError(
                f"accelerator: {name!r} is not in the registry; {did_you_mean(name, ['auto', 'cpu', *known])}"
            )
        found = known[name]
    return found if price_per_hour is None else replace(found, price_per_hour=price_per_hour)


def detect() -> Accelerator:
    """The GPU of this host, where there is one that the engine can run on, else its CPU."""
    return (detect_gpu() if "gpu" in serving_kinds() else None) or detect_cpu()


def detect_gpu() -> Accelerator | None:
    return gpu_of(_nvidia_smi())


def detect_cpu() -> Accelerator:
    speed, cores = host_speed(cache_dir()), usable_cores()
    return Accelerator(
        name=f"cpu-{cores}",
        kind="cpu",
        memory_bytes=usable_memory_bytes(),
        bandwidth_bytes_per_s=speed.bandwidth_bytes_per_s,
        # bf16 weights are widened to fp32 before they are multiplied.
        flops={"fp32": speed.fp32_flops, "bf16": speed.fp32_flops, "int8": speed.fp32_flops * int8_gain()},
        price_per_hour=cores * CPU_CORE_PRICE_PER_HOUR,
        cores=cores,
    )


def gpu_of(nvidia_smi: str) -> Accelerator | None:
    """The first GPU of nvidia-smi's list, with the memory it says; None for one that the registry does not know."""
    lines = nvidia_smi.splitlines() or [""]
    name, _, memory_mib = lines[0].rpartition(",")
    words = set(name.replace("-", " ").split())
    for accelerator in _KNOWN:
        if set(accelerator.name.replace("80G", "80GB").split("-")) <= words:
            return replace(accelerator, memory_bytes=int(memory_mib) * MIB, count=lines.count(lines[0]))
    return None


def _nvidia_smi() -> str:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
