"""Results on their way from the device to the host: copied behind the step that makes them, waited for when read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def to_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Starts the copy on the current stream; calling the result waits for it alone, not for later steps."""
    if not tensor.is_cuda:
        copied = tensor.clone()
        return lambda: copied
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def wait() -> Tensor:
        done.synchronize()
        return host

    return wait
