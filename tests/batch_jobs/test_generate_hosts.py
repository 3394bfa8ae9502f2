"""A job on two hosts, one of which dies: two network namespaces of this machine with a Ray node in each."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.batch_jobs.job_runs import ACTOR, ENGINE, JobRuns, named, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

PORT = 6379
NETWORK = "10.231.77"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A network namespace with one address."""

    namespace: str
    address: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace)

    def processes(self) -> list[psutil.Process]:
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True)
        found = []
        for pid in listed.stdout.split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def kill(self) -> None:
        """All at once, as when its power goes."""
        while processes := self.processes():
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            psutil.wait_procs(processes, timeout=5)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Joined by a cable; each sees only itself and the other."""
    name = f"qf{os.getpid()}"
    first, second = (Host(namespace=f"{name}{end}", address=f"{NETWORK}.{n}") for n, end in enumerate("ab", 1))
    with ExitStack() as stack:
        for host in (first, second):
            try:
                ip("netns", "add", host.namespace)
            except (OSError, subprocess.CalledProcessError):
                pytest.skip("network namespaces need root and iproute2")
            stack.callback(ip, "netns", "del", host.namespace)
            stack.callback(host.kill)
        ip(
            "link",
            "add",
            f"{name}a",
            "netns",
            first.namespace,
            "type",
            "veth",
            "peer",
            f"{name}b",
            "netns",
            second.namespace,
        )
        for host in (first, second):
            for device in ("lo", host.namespace):
                ip("-n", host.namespace, "link", "set", device, "up")
            ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", host.namespace)
        yield first, second


@contextmanager
def ray_on(first: Host, second: Host) -> Iterator[dict[str, str]]:
    """A cluster of both; the environment of a driver on the first."""
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="qf") as folder:
        for host, role in ((first, ("--head", f"--port={PORT}")), (second, (f"--address={first.address}:{PORT}",))):
            command = [*host.prefix, sys.executable, "-m", "ray.scripts.scripts", "start", *role]
            command += [f"--node-ip-address={host.address}", "--num-cpus=1", "--object-store-memory=268435456"]
            command += [f"--temp-dir={folder}/{host.namespace}", "--disable-usage-stats"]
            command += ["--include-dashboard=false"] if host is first else []
            subprocess.run(command, env=os.environ | environment, check=True, timeout=120, stdout=subprocess.DEVNULL)
        yield environment | {"RAY_ADDRESS": f"{first.address}:{PORT}"}


def test_a_host_that_dies_costs_no_row(checkpoint: Path, tmp_path: Path, hosts: tuple[Host, Host]) -> None:
    first, second = hosts
    with ray_on(first, second) as environment:
        options = ("--variant", "int8", "--max-tokens", "8", "--batch-size", "16", "--engines", "2")
        runs = JobRuns(
            folder=tmp_path,
            num_rows=1500,
            rows_per_file=4,
            options=options,
            prefix=first.prefix,
            environment=environment,
        )
        process = runs.start()
        wait_for(
            lambda: (
                process.poll() is not None
                or (runs.num_files() >= 20 and all(named(host.processes(), ENGINE) for host in hosts))
            ),
            240,
        )
        assert process.poll() is None, runs.told()
        assert named(second.processes(), ACTOR)
        second.kill()
        assert process.wait(400) == 0, runs.told()
        runs.check()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
