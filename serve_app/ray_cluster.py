"""Ray for a fleet: joined where RAY_ADDRESS says so, else started in a process of its own; it deploys nothing."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from batch_jobs.ray_driver import environment, keeping_signal_handlers
from cluster.cpu_host import usable_cores
from serve_app.ray_settings import driver_environment, fleet_environment

MIN_LOGICAL_CPUS = 4
"""Serve's and our own actors ask for none; a Ray Data job beside the fleet needs some for its stages."""
END_TIMEOUT_S = 8.0


@contextmanager
def joined_ray(metrics_port: int = 0) -> Iterator[None]:
    """This process is a driver of Ray inside. A Ray that was started here ends with it, the other stays.

    `metrics_port`: of a Ray that is started here; 0 is any that is free.
    """
    if "RAY_ADDRESS" in os.environ:
        with environment(driver_environment()), _joined(os.environ["RAY_ADDRESS"]):
            yield
        return
    temp_dir = Path(tempfile.mkdtemp(prefix="qf-", dir="/tmp"))  # short: unix sockets lie below, 107 bytes at most
    settings = fleet_environment(temp_dir, usable_cores())
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, temp_dir, ignore_errors=True)
        stack.enter_context(environment(settings))
        # Without a name: the head clears the folder up, and its last words must outlive it.
        log = stack.enter_context(tempfile.TemporaryFile("w+"))
        head = stack.enter_context(_head(temp_dir, log, metrics_port))
        stack.enter_context(environment(driver_environment()))  # not for the head: its workers would inherit it
        importlib.import_module("ray.serve")  # two seconds, which Ray's start takes anyway
        stack.enter_context(_joined(_address(head, log)))
        yield


@contextmanager
def _head(temp_dir: Path, log: IO[str], metrics_port: int) -> Iterator[subprocess.Popen[str]]:
    """Its stdin closes when this process ends, whatever ends it."""
    num_cpus = max(MIN_LOGICAL_CPUS, usable_cores())
    head = subprocess.Popen(
        [sys.executable, "-m", "serve_app.ray_head", str(temp_dir), str(num_cpus), str(metrics_port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
        text=True,
    )
    try:
        yield head
    finally:
        assert head.stdin is not None
        with suppress(OSError):
            head.stdin.close()
        try:
            head.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            head.kill()  # the kernel then ends Ray's daemons, which asked for it
            head.wait()


def _address(head: subprocess.Popen[str], log: IO[str]) -> str:
    assert head.stdout is not None
    address = head.stdout.readline().strip()
    if not address:
        log.seek(0)
        lines = log.read().strip().splitlines()
        raise RuntimeError(f"Ray did not start: {lines[-1] if lines else 'it said nothing'}")
    return address


def metrics_urls() -> tuple[str, ...]:
    """Where each node's metrics are, for a driver of Ray."""
    import ray

    return tuple(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"] and node["MetricsExportPort"]
    )


@contextmanager
def _joined(address: str) -> Iterator[None]:
    import ray

    with keeping_signal_handlers():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
