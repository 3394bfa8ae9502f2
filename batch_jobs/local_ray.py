"""Ray for one job: the one this process has joined, the one RAY_ADDRESS names, or one started here; it runs nothing.

Whatever was started here is ended here; a Ray that was there before stays as it is.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.cpu_host import usable_cores

OBJECT_STORE_BYTES = 256 * 2**20
"""Blocks are a slice of rows each, some 100 kB; Ray's own choice would be a third of the host's memory."""


@contextmanager
def job_ray() -> Iterator[None]:
    _set_authentication()
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    folder = None if address else tempfile.mkdtemp(prefix="qfjob-")  # short: unix sockets lie in it, 107 bytes at most
    try:
        if folder is None:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            _start(f"{folder}/ray")  # Ray opens its folder to everyone; the one around it stays closed
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _start(folder: str) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=usable_cores(),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )


def _set_authentication() -> None:
    """A token that only this process and its children know: other users of this host reach loopback too, and whoever
    reaches Ray runs code. Without one Ray writes its own into $HOME/.ray, which changes every later `ray start`."""
    if os.environ.keys() & {"RAY_AUTH_MODE", "RAY_ADDRESS"}:
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if "ray" not in sys.modules:  # once imported it no longer reads the mode, but ray.init sets it to token itself
        os.environ["RAY_AUTH_MODE"] = "token"
