"""Launches noted once and run again without Python, as a CUDA graph is; knows no operation and no model.

A decode step of a 30-layer model is 270 launches. Their Python costs 3 to 6 ms, the kernels themselves 9: a function
whose launches depend on nothing but its tensors' addresses and sizes is therefore called once, and afterwards its list
of (kernel, items, arguments) is gone through by one compiled loop. Its inputs are read, and its output appears, where
they lay at the recording.
"""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kernels.cpu import pool
from kernels.cpu.compile import host_function
from kernels.cpu.pool import BUSY, PARKED, ThreadPool, _atomic_exchange, _atomic_load, _atomic_store, _run
from kernels.cpu.simd import get_i64

COLUMNS = 24
"""Of a launch: first kernel, its items, second kernel, its items, twenty arguments."""
ALIGNMENT = 64


class NotRecordableError(RuntimeError):
    """The function did something that a replay would not do again."""


@host_function("int64(int64, int64, int64, int64)")
def _replay(control, steps, first, count):
    """Launches from `first` on, to the end or until a helper sleeps and wants waking; the index of the next one."""
    alone = control == 0 or _atomic_exchange(control + 8 * BUSY, 1) != 0
    block = 0 if alone else control
    following = first
    while following < count:
        step = steps + 8 * COLUMNS * following
        _run(block, get_i64(step), get_i64(step + 8), step + 32)
        _run(block, get_i64(step + 16), get_i64(step + 24), step + 32)
        following += 1
        if not alone and _atomic_load(control + 8 * PARKED) > 0:
            break
    if not alone:
        _atomic_store(control + 8 * BUSY, 0)
    return following


class Arena:
    """Memory that recordings share: a tensor that dies within a recording leaves its place to the next one.

    Recordings of one arena overwrite each other's tensors, so an output is good until the next replay.
    """

    def __init__(self, num_bytes: int) -> None:
        self._memory = np.empty(num_bytes, dtype=np.uint8)  # a page costs memory once it is written
        self._taken: dict[int, int] = {}

    def empty(self, *shape: int) -> Tensor:
        """A float32 tensor at the lowest free address."""
        num_bytes = -(-4 * int(np.prod(shape)) // ALIGNMENT) * ALIGNMENT
        offset = self._lowest_gap(num_bytes)
        array = np.ndarray(shape, dtype=np.float32, buffer=self._memory.data, offset=offset)
        self._taken[offset] = num_bytes
        # The tensor's storage holds the array, so the place is free when no view of it is left either.
        weakref.finalize(array, self._taken.pop, offset)
        return torch.from_numpy(array)

    def _lowest_gap(self, num_bytes: int) -> int:
        start = -self._memory.ctypes.data % ALIGNMENT
        for offset in sorted(self._taken):
            if offset - start >= num_bytes:
                break
            start = offset + self._taken[offset]
        if start + num_bytes > self._memory.nbytes:
            raise NotRecordableError(f"its tensors take more than the arena's {self._memory.nbytes} bytes")
        return start

    def view(self, tensor: Tensor) -> Tensor:
        """The same place as a tensor that does not hold it."""
        offset = tensor.data_ptr() - self._memory.ctypes.data
        array = np.ndarray(tuple(tensor.shape), dtype=np.float32, buffer=self._memory.data, offset=offset)
        return torch.from_numpy(array)


class _ArenaMode(TorchFunctionMode):
    """torch.empty takes from the arena; whatever else makes or changes a tensor would be missing from a replay."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self._arena = arena

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.empty and not kwargs:
            return self._arena.empty(*(args[0] if isinstance(args[0], tuple) else args))
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if isinstance(result, Tensor) and (name.endswith("_") or not _is_view(result, args)):
            raise NotRecordableError(f"it calls {name or function}, which is no launch")
        return result


def _is_view(result: Tensor, args: Any) -> bool:
    with torch._C.DisableTorchFunction():
        storages = [value.untyped_storage().data_ptr() for value in args if isinstance(value, Tensor)]
        return result.untyped_storage().data_ptr() in storages


class _Recorder:
    """Stands in for the pool: passes every launch on and notes it."""

    def __init__(self, real: ThreadPool) -> None:
        self.real, self.num_threads = real, real.num_threads
        self.steps: list[tuple[int, ...]] = []
        self.memory: list[np.ndarray] = []

    def launch(self, first: int, first_items: int, second: int, second_items: int, words: tuple[int, ...]) -> None:
        self.steps.append((first, first_items, second, second_items, *words))
        self.memory.append(pool._SCRATCH.memory)  # a later, larger scratch must not free what these words point to
        self.real.launch(first, first_items, second, second_items, words)


class Recording:
    """The launches of one call of a function, and the tensors it returned."""

    def __init__(self, function: Callable[[], tuple[Tensor, ...]], arena: Arena) -> None:
        self._pool = pool._POOLS[0]
        recorder = _Recorder(self._pool)
        pool._POOLS[0] = recorder
        try:
            with _ArenaMode(arena):
                made = function()
        finally:
            pool._POOLS[0] = self._pool
        self._steps = np.array(recorder.steps, dtype=np.int64)
        self._scratch = list({id(memory): memory for memory in recorder.memory}.values())
        self.outputs = tuple(arena.view(tensor) for tensor in made)
        """Of the recorded call, then of each replay; good until the next one in this arena."""

    @property
    def is_stale(self) -> bool:
        """The number of threads has changed since: scratch memory is theirs, so record again."""
        return pool._POOLS[0] is not self._pool

    def replay(self) -> None:
        assert not self.is_stale
        following, count = 0, len(self._steps)
        control, steps = self._pool._address, self._steps.ctypes.data
        while following < count:
            if control and (parked := int(_take_parked(control))):
                self._pool._wake.release(parked)
            following = int(_replay(control, steps, following, count))


@host_function("int64(int64)")
def _take_parked(control):
    return _atomic_exchange(control + 8 * PARKED, 0)
