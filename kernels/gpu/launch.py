"""What every launch on a GPU asks of the card: programmatic dependent launch, number of SMs; it knows no operation.

Programmatic dependent launch (CUDA 12.3+, Hopper) starts a kernel's programs while the one before still drains. Each
kernel waits by `gdc_wait` before it touches what another wrote, so that only weights are read early.
"""

from functools import cache

import torch
from torch import Tensor


def pdl(tensor: Tensor) -> bool:
    """Whether kernels on this tensor's device are launched as programmatic dependents; never in the interpreter."""
    return tensor.is_cuda and _is_hopper(tensor.device.index)


def num_sms(tensor: Tensor) -> int:
    """Multiprocessors of the tensor's card; 8 in the interpreter, so that splits are met there too."""
    return _multiprocessors(tensor.device.index) if tensor.is_cuda else 8


@cache
def _is_hopper(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
