"""What every launch on a GPU asks of the card: programmatic dependent launch, number of SMs; it knows no operation.

Programmatic dependent launch (CUDA 12.3+, Hopper) starts a kernel's programs while the one before still drains. The
contract of all kernels of a decode step that are launched so:

- Every program calls `gdc_wait`, on every path, and writes nothing before it.
- `gdc_launch_dependents` comes after `gdc_wait`, never before. All programs of a kernel have then passed their wait
  when its successor starts, so all kernels but the one directly ahead have completed and their writes are visible.
- Before `gdc_wait` a kernel may therefore read whatever the kernel directly ahead does not write: weights, and also
  what the step's earlier kernels wrote (plan, block tables, angles, cached tokens). After it, the rest.
- A kernel that never calls `gdc_launch_dependents` (any of torch's) starts its successor once its programs have ended.
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
