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
from functools import cache
from pathlib import Path

import engine
from batch_jobs.ray_driver import environment, keeping_signal_handlers, unchanged
from cluster.cpu_host import usable_cores

OBJECT_STORE_BYTES = 256 * 2**20
"""Blocks are a slice of rows each, some 100 kB; Ray's own choice would be a third of the host's memory."""


@contextmanager
def job_ray() -> Iterator[None]:
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    folder = None if address else tempfile.mkdtemp(prefix="qfjob-")  # short: unix sockets lie in it, 107 bytes at most
    with unchanged("RAY_AUTH_MODE"), environment({} if address else _settings()):
        import ray  # reads the settings

        try:
            with keeping_signal_handlers():
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


def _settings() -> dict[str, str]:
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Its name aside, off keeps Ray on loopback: otherwise it puts the host's own address in the place of 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(
            [str(Path(engine.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    if "RAY_AUTH_MODE" in os.environ:
        return settings
    # A token that only this process and its children know: other users of this host reach loopback too, and whoever
    # reaches Ray runs code. Without one Ray writes its own into $HOME/.ray, which changes every later `ray start`.
    settings["RAY_AUTH_TOKEN"] = _token()
    if "ray" not in sys.modules:  # once imported it no longer reads the mode, but ray.init sets it to token itself
        settings["RAY_AUTH_MODE"] = "token"
    return settings


@cache
def _token() -> str:
    """Ray's core reads it once a process: another one for a second job would be refused by its own cluster."""
    return secrets.token_hex(32)
