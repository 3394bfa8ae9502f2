"""Accelerator: memory, bandwidth, arithmetic and price of the hardware a replica runs on; it detects nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cluster.errors import UserError, did_you_mean

GB = 10**9
GIB = 2**30
TFLOPS = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One GPU, or one host whose CPU does the work."""

    name: str
    kind: Literal["cpu", "gpu"]
    memory_bytes: int
    bandwidth_bytes_per_s: float
    """Of its memory: the vendor's figure for a GPU, a measured read for a CPU host."""
    flops: Mapping[str, float]
    """Dense peak by dtype: fp32, bf16, int8, fp8 (where it has it)."""
    price_per_hour: float
    """US dollars, on demand; fleet.yaml may say another."""
    cores: int = 0
    """CPU hosts: the cores this process may use."""

    def peak(self, dtype: str) -> float:
        """A dtype without units of its own runs at the bf16 rate (fp8 weights on an A100 are widened first)."""
        return self.flops.get(dtype, self.flops["bf16"])


def _gpu(
    name: str, memory_bytes: int, tb_per_s: float, price: float, *, bf16: float, eight_bit: Mapping[str, float]
) -> Accelerator:
    """Peaks in TFLOP/s (TOP/s for int8), dense."""
    tflops = {"fp32": bf16 / 16, "bf16": bf16, **eight_bit}
    return Accelerator(
        name=name,
        kind="gpu",
        memory_bytes=memory_bytes,
        bandwidth_bytes_per_s=tb_per_s * 1e12,
        flops={dtype: value * TFLOPS for dtype, value in tflops.items()},
        price_per_hour=price,
    )


# Sources: the vendors' data sheets, dense figures (half of those "with sparsity"). Memory as nvidia-smi reports it.
_KNOWN = (
    # nvidia.com/en-us/data-center/a100
    _gpu("A100-80G", 81920 * 2**20, 2.039, 1.79, bf16=312, eight_bit={"int8": 624}),
    # nvidia.com/en-us/data-center/h100, the SXM form
    _gpu("H100-80G", 81559 * 2**20, 3.35, 2.99, bf16=989, eight_bit={"int8": 1979, "fp8": 1979}),
    # nvidia.com/en-us/data-center/h200, the SXM form
    _gpu("H200", 143771 * 2**20, 4.8, 3.79, bf16=989, eight_bit={"int8": 1979, "fp8": 1979}),
    # nvidia.com/en-us/data-center/l4
    _gpu("L4", 23034 * 2**20, 0.300, 0.71, bf16=121, eight_bit={"int8": 242, "fp8": 242}),
    # nvidia.com/en-us/data-center/l40s
    _gpu("L40S", 46068 * 2**20, 0.864, 0.86, bf16=362, eight_bit={"int8": 733, "fp8": 733}),
    # NVIDIA Ada GPU architecture white paper, table of the RTX 4090, with fp32 accumulation
    _gpu("RTX-4090", 24564 * 2**20, 1.008, 0.44, bf16=165, eight_bit={"int8": 661, "fp8": 330}),
    # AMD Instinct MI300X data sheet
    _gpu("MI300X", 192 * GIB, 5.3, 2.99, bf16=1307, eight_bit={"int8": 2615, "fp8": 2615}),
)


def known_accelerators() -> dict[str, Accelerator]:
    """The registry: hardware one may plan for without having it."""
    return {accelerator.name: accelerator for accelerator in _KNOWN}


def accelerator_named(name: str) -> Accelerator:
    known = known_accelerators()
    if name not in known:
        raise UserError(f"accelerator {name!r}: not in the registry; {did_you_mean(name, known)}")
    return known[name]
