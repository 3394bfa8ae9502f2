"""The process that works on one batch: a step of it, ended when its parent ends; it chooses no batch.

`python -m serve_app.batches.process`: an Order comes as a line on stdin, which then stays open as long as the parent
lives, whatever ends that.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec

from batch_jobs.niceness import give_way
from cluster.config import FleetConfig
from cluster.errors import UserError
from serve_app.batches.batch_folder import BatchBusyError, BatchFolder
from serve_app.batches.exit_codes import BUSY, ORPHANED, USER_ERROR
from serve_app.batches.order import Order
from serve_app.batches.steps import Step
from serve_app.batches.work import BatchWork


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to answer
    give_way()
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    batch = BatchFolder(path=Path(order.batch))
    try:
        with batch.held():
            do_step(order.step, batch, FleetConfig.of(order.config))
    except BatchBusyError:
        return BUSY
    except UserError as error:
        print(f"quantfleet: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def do_step(step: Step, batch: BatchFolder, config: FleetConfig) -> None:
    """UserError for what the server's owner or the batch's is to mend."""
    work = BatchWork(batch=batch, config=config)
    if step == "check":
        work.check()
    elif step == "settle":
        work.settle()
    else:
        from serve_app.batches.job import run_batch  # a second of imports, of no use to the other steps

        if run_batch(batch, config) or batch.is_due(time.time()):
            work.settle()


def _end_with_parent() -> None:
    """At once: whatever is half done, the next one goes on with."""
    while os.read(sys.stdin.fileno(), 1024):  # not of the buffer, whose lock an end of the main thread would wait for
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main())
