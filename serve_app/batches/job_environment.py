"""The environment of a process that runs a job on the Ray of the one that starts it; it starts nothing."""

from __future__ import annotations

import os

import ray

OF_A_WORKER = ("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_WORKER_ID", "RAY_NODE_ID")
"""What Ray tells one of its workers of itself."""


def job_environment(job_key: str) -> dict[str, str]:
    """Of this process, a worker of Ray's: a driver started with it joins the same Ray, and may call the same fleet."""
    mine = {name: value for name, value in os.environ.items() if name not in OF_A_WORKER}
    return mine | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "QUANTFLEET_API_KEY": job_key}
