"""A process that holds a Ray while its stdin is open, then ends every process that came of it; it knows no fleet.

It lives in its own session, so a Ctrl-C that reaches its parent's group does not reach Ray before the drain. It is the
parent of every orphan below it (a "subreaper"), so whatever Ray or a replica leaves behind is found and ended, also
when its parent was killed: then stdin closes.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import sys
import traceback
from contextlib import suppress

import psutil

PR_SET_CHILD_SUBREAPER = 36
OBJECT_STORE_BYTES = 256 * 2**20
"""For Ray Data's blocks; serving puts nothing there. Ray's own choice would be a third of the host's memory."""
REAP_PERIOD_S = 5.0
END_TIMEOUT_S = 2.0


def main(temp_dir: str, num_cpus: int, metrics_port: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        hold_ray(temp_dir, num_cpus, metrics_port)
    except Exception:
        traceback.print_exc()
    finally:
        end_descendants()
        shutil.rmtree(temp_dir, ignore_errors=True)
        os._exit(0)  # ray.shutdown at exit would look for what is gone by now


def hold_ray(temp_dir: str, num_cpus: int, metrics_port: int) -> None:
    """`metrics_port` 0: any that is free."""
    import ray

    ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _metrics_export_port=metrics_port or None,
        _node_ip_address="127.0.0.1",
        _temp_dir=temp_dir,
    )
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray's own handler would end this process before the others
    print(ray.get_runtime_context().gcs_address, flush=True)
    wait_for_eof()


def wait_for_eof() -> None:
    stdin = sys.stdin.buffer.fileno()
    while True:
        readable, _, _ = select.select([stdin], [], [], REAP_PERIOD_S)
        if readable and not os.read(stdin, 1024):
            return
        reap_orphans()


def reap_orphans() -> None:
    """Those that have ended; a replica's engine process, say, whose replica was killed."""
    for child in psutil.Process().children():
        with suppress(psutil.Error, ChildProcessError):
            if child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


def end_descendants() -> None:
    """Asked first, then killed; a killed one's children become ours, so it is asked again who is there."""
    for end in (psutil.Process.terminate, psutil.Process.kill, psutil.Process.kill):
        running = psutil.Process().children(recursive=True)
        for process in running:
            with suppress(psutil.Error):
                end(process)
        psutil.wait_procs(running, timeout=END_TIMEOUT_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
