"""How a CPU kernel is compiled and where its machine code is cached; knows no operation.

The cache folder is `NUMBA_CACHE_DIR`, else `$XDG_CACHE_HOME/quantfleet`, else `~/.cache/quantfleet`, and in it one
folder per digest of these sources: numba itself notices a change of the kernel's own file only, not of what it inlines.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import types

KERNEL_SIGNATURE = types.void(types.CPointer(types.int64), types.int64, types.int64)


def _cache_folder() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    home = os.environ.get("NUMBA_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "quantfleet"
    )
    folder = os.path.join(home, f"kernels-{digest.hexdigest()[:16]}")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        folder = ""
    # nowhere to write: this process compiles for itself
    return folder if os.access(folder, os.W_OK) else tempfile.mkdtemp(prefix="quantfleet-kernels-")


_FOLDER = _cache_folder()


def _with_cache_folder(decorate: Callable[[], Any]) -> Any:
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _FOLDER
    try:
        return decorate()
    finally:
        numba.config.CACHE_DIR = before


def kernel(function: Callable[..., None]) -> int:
    """Compile `function(args, item, worker)` and return its address for `pool.launch`.

    `args` points to the int64 words given to launch (addresses and sizes), `item` is the piece of work in
    [0, items), `worker` the thread's number, for scratch memory of its own.
    """
    compiled = _with_cache_folder(lambda: numba.cfunc(KERNEL_SIGNATURE, cache=True, error_model="numpy")(function))
    _ALIVE.append(compiled)
    return int(compiled.address)


# numba frees the machine code of a cfunc with its Python object, and an address keeps nothing alive
_ALIVE: list[Any] = []


def host_function(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function that Python calls itself; it releases the GIL."""

    def decorate(function: Callable[..., Any]) -> Any:
        return _with_cache_folder(lambda: numba.njit(signature, cache=True, nogil=True, error_model="numpy")(function))

    return decorate


inline = numba.njit(forceinline=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
