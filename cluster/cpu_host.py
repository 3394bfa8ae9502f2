"""This host's CPU: cores, memory, and its bandwidth and arithmetic as measured; it knows no price and no GPU.

`python -P cluster/cpu_host.py` prints the measurement: in a process of its own numpy's BLAS can be held to one thread
(the variable is read at import), and whoever asks need not load numpy. -P keeps this folder off the path, where
profile.py would hide the standard library's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil
from pathlib import Path

MEASURE_TIMEOUT_S = 60
BUFFER_BYTES = 96 * 2**20
"""A thread; with two threads six times the 32 MiB of L3 that server cores share. Larger buffers read no slower."""
GEMM_SIZE = 512
SMALL_INT8_GAIN = 1.75
"""int8 over fp32 multiply-adds without VNNI: 32 products in one vpmaddubsw against 8 in an FMA, less the widening."""
VNNI_INT8_GAIN = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpeed:
    bandwidth_bytes_per_s: float
    fp32_flops: float


def cpu_model() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return match.group(1).strip() if match else "cpu"


def int8_gain() -> float:
    return VNNI_INT8_GAIN if re.search(r"\bav(x512_|x_)vnni\b", _read("/proc/cpuinfo")) else SMALL_INT8_GAIN


def usable_cores() -> int:
    """Those this process may run on, and no more than a container's CPU quota pays for."""
    allowed = len(os.sched_getaffinity(0))
    version_1 = [_read(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period")]
    quota = cgroup_cores(_read("/sys/fs/cgroup/cpu.max") or " ".join(version_1))
    return max(1, min(allowed, ceil(quota)) if quota else allowed)


def cgroup_cores(cpu_max: str) -> float | None:
    """Of "200000 100000": 2.0; of "max 100000", version 1's "-1 100000", or no file: None."""
    fields = cpu_max.split()
    return None if len(fields) < 2 or fields[0] in ("max", "-1") else int(fields[0]) / int(fields[1])


def usable_memory_bytes() -> int:
    """The host's memory, or a container's limit where that is less."""
    total = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    if total is None:
        raise OSError("/proc/meminfo does not say MemTotal")
    limits = [_read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    return min([int(total.group(1)) * 1024, *(int(limit) for limit in limits if limit.strip().isdigit())])


def host_speed(cache_dir: Path) -> HostSpeed:
    """Measured once per CPU model and number of cores, in about half a second."""
    cores = usable_cores()
    file = cache_dir / "hosts" / f"{re.sub('[^A-Za-z0-9]+', '-', cpu_model())}-{cores}.json"
    try:
        return HostSpeed(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        speed = _measured_in_a_process(cores)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.unfinished")
    unfinished.write_text(json.dumps(asdict(speed)))
    unfinished.replace(file)
    return speed


def _measured_in_a_process(cores: int) -> HostSpeed:
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-P", __file__, str(cores)],
        env=os.environ | one_thread,
        capture_output=True,
        text=True,
        check=True,
        timeout=MEASURE_TIMEOUT_S,
    )
    return HostSpeed(**json.loads(done.stdout))


def measure(threads: int) -> HostSpeed:
    import numpy as np

    # ones, not zeros: untouched pages of zeros are all the same page, and that one stays in cache (50 GB/s a thread).
    buffers = [np.ones(BUFFER_BYTES // 4, dtype=np.int32) for _ in range(threads)]
    matrices = [np.ones((GEMM_SIZE, GEMM_SIZE), dtype=np.float32) for _ in range(threads)]
    read_s = _best_s([buffer.max for buffer in buffers], rounds=4)
    gemm_s = _best_s([partial(np.matmul, matrix, matrix) for matrix in matrices], rounds=10)
    return HostSpeed(
        bandwidth_bytes_per_s=threads * BUFFER_BYTES / read_s,
        fp32_flops=threads * 2 * GEMM_SIZE**3 / gemm_s,
    )


def _best_s(calls: list[Callable[[], object]], rounds: int) -> float:
    """Wall time of all calls at once, one a thread; the best round, as a busy neighbour only ever adds."""
    from concurrent.futures import ThreadPoolExecutor

    times = []
    with ThreadPoolExecutor(len(calls)) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            for future in [pool.submit(call) for call in calls]:
                future.result()
            times.append(time.perf_counter() - start)
    return min(times)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    print(json.dumps(asdict(measure(int(sys.argv[1])))))
