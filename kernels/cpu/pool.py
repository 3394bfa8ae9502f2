"""The threads of the CPU path: a caller and its helpers claim pieces of a kernel; does not know what it computes.

A helper spins for a tenth of a millisecond after its last piece and then sleeps. The caller claims pieces
too, so a sleeping or descheduled helper costs its help and nothing else, and a launch with one thread is a
plain loop.
"""

import threading
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.compile import host_function, inline
from kernels.cpu.simd import call_llvm, get_i64, operation, pointer

# words of the control block; what several threads write lies on cache lines of its own
REMAINING, ACTIVE, PARKED, BUSY, STOPPED, ITEMS, KERNEL, ARGUMENTS = 0, 16, 32, 48, 64, 80, 81, 82
CONTROL_WORDS = 96
SPINS = 4000
_I64 = ir.IntType(64)


@operation(types.int64, types.int64, types.int64)
def _atomic_add(builder: Any, address: Any, value: Any) -> Any:
    """Add and return what was there before."""
    return builder.atomic_rmw("add", pointer(builder, address, _I64), value, "seq_cst")


@operation(types.int64, types.int64, types.int64)
def _atomic_exchange(builder: Any, address: Any, value: Any) -> Any:
    return builder.atomic_rmw("xchg", pointer(builder, address, _I64), value, "seq_cst")


@operation(types.int64, types.int64)
def _atomic_load(builder: Any, address: Any) -> Any:
    return builder.load_atomic(pointer(builder, address, _I64), "seq_cst", 8)


@operation(types.void, types.int64, types.int64)
def _atomic_store(builder: Any, address: Any, value: Any) -> None:
    builder.store_atomic(value, pointer(builder, address, _I64), "seq_cst", 8)


@operation(types.void, types.int64)
def _pause(builder: Any, unused: Any) -> None:
    if "x86" in builder.module.triple:
        call_llvm(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])


@operation(types.void, types.int64, types.int64, types.int64, types.int64)
def _call(builder: Any, kernel: Any, arguments: Any, item: Any, worker: Any) -> None:
    words = _I64.as_pointer()
    function = ir.FunctionType(ir.VoidType(), [words, _I64, _I64])
    builder.call(
        builder.inttoptr(kernel, function.as_pointer()),
        [builder.inttoptr(arguments, words), item, worker],
    )


@intrinsic
def _on_stack(typingctx: Any, words: Any) -> Any:
    """The address of a copy of a tuple of int64."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array = cgutils.alloca_once(builder, ir.ArrayType(_I64, len(words)))
        builder.store(values[0], array)
        return builder.ptrtoint(array, _I64)

    return types.int64(words), codegen


@inline
def _work(control, worker) -> None:
    """Claim pieces until none is left: a claim counts REMAINING down, and only a positive count is one."""
    claim = _atomic_add(control + 8 * REMAINING, -1)
    while claim > 0:
        item = get_i64(control + 8 * ITEMS) - claim
        _call(get_i64(control + 8 * KERNEL), get_i64(control + 8 * ARGUMENTS), item, worker)
        claim = _atomic_add(control + 8 * REMAINING, -1)


@host_function("int64(int64, int64)")
def _help(control, worker) -> int:
    """Work whenever there is work; true when idle for SPINS looks, false when told to stop."""
    idle = 0
    while idle < SPINS:
        if _atomic_load(control + 8 * STOPPED) != 0:
            return 0
        if _atomic_load(control + 8 * REMAINING) > 0:
            # counted in before the first claim: the caller reuses the control block only when nobody is in
            _atomic_add(control + 8 * ACTIVE, 1)
            _work(control, worker)
            _atomic_add(control + 8 * ACTIVE, -1)
            idle = 0
        _pause(0)
        idle += 1
    _atomic_add(control + 8 * PARKED, 1)
    return 1


@inline
def _run(control, kernel, items, arguments) -> None:
    """Every piece of a kernel, by whichever threads are awake."""
    if control == 0 or items <= 1:
        for item in range(items):
            _call(kernel, arguments, item, 0)
        return
    _atomic_store(control + 8 * KERNEL, kernel)
    _atomic_store(control + 8 * ITEMS, items)
    _atomic_store(control + 8 * ARGUMENTS, arguments)
    _atomic_store(control + 8 * REMAINING, items)
    _work(control, 0)
    while _atomic_load(control + 8 * ACTIVE) > 0:
        _pause(0)


@host_function("int64(int64, int64, int64, int64, int64, UniTuple(int64, 20))")
def _launch(control, first, first_items, second, second_items, words) -> int:
    """Run one kernel, then another; returns how many helpers sleep and should be woken for the next launch.

    A second Python thread that launches meanwhile finds the block busy and runs its own pieces alone.
    """
    arguments = _on_stack(words)
    if control == 0 or _atomic_exchange(control + 8 * BUSY, 1) != 0:
        _run(0, first, first_items, arguments)
        _run(0, second, second_items, arguments)
        return 0
    _run(control, first, first_items, arguments)
    _run(control, second, second_items, arguments)
    _atomic_store(control + 8 * BUSY, 0)
    return _atomic_exchange(control + 8 * PARKED, 0) if second_items > 1 else 0


class ThreadPool:
    """A caller and `num_threads - 1` helpers."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._control = np.zeros(CONTROL_WORDS, dtype=np.int64)
        self._wake = threading.Semaphore(0)
        self._address = self._control.ctypes.data if num_threads > 1 else 0
        for worker in range(1, num_threads):
            threading.Thread(target=self._run_helper, args=(worker,), name=f"kernels-{worker}", daemon=True).start()

    def _run_helper(self, worker: int) -> None:
        while _help(self._address, worker):
            self._wake.acquire()

    def launch(self, first: int, first_items: int, second: int, second_items: int, words: tuple[int, ...]) -> None:
        parked = _launch(self._address, first, first_items, second, second_items, words)
        if parked:
            self._wake.release(parked)

    def stop(self) -> None:
        self._control[STOPPED] = 1
        self._wake.release(self.num_threads)


_NO_WORDS = (0,) * 20
# one pool a process: the machine's cores are one, and an engine process has one stepping thread
_POOLS = [ThreadPool(1)]


def set_num_threads(num_threads: int) -> None:
    if num_threads != _POOLS[0].num_threads:
        _POOLS[0].stop()
        _POOLS[0] = ThreadPool(num_threads)


def num_threads() -> int:
    return _POOLS[0].num_threads


def launch(kernel: int, items: int, *words: int) -> None:
    """Run `kernel` on items 0 .. items - 1, on all threads where there is more than one item."""
    _POOLS[0].launch(0, 0, kernel, items, words + _NO_WORDS[len(words) :])


def launch_two(first: int, first_items: int, second: int, second_items: int, *words: int) -> None:
    """Run `first`, then `second` on what it wrote: both get the same words."""
    all_words = words + _NO_WORDS[len(words) :]
    _POOLS[0].launch(first, first_items, second, second_items, all_words)


class _Scratch(threading.local):
    """Memory that kernels of one Python thread write and read again within an operation."""

    def __init__(self) -> None:
        self.memory = np.empty(0, dtype=np.uint8)
        self.address = 0


_SCRATCH = _Scratch()


def scratch(num_bytes: int) -> int:
    """The address of at least that many bytes, which the thread's next call of scratch may hand out again."""
    if _SCRATCH.memory.nbytes < num_bytes:
        _SCRATCH.memory = np.empty(num_bytes, dtype=np.uint8)
        _SCRATCH.address = _SCRATCH.memory.ctypes.data
    return _SCRATCH.address


@cache
def float_bits(value: float) -> int:
    """A float32 as a launch argument; `simd.f32_of_bits` turns it back."""
    return int(np.float32(value).view(np.int32))
