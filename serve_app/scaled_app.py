"""A fleet's application with its scaling policy: deployed as `serve deploy` deploys, since only that takes a policy.

Serve's client is used from within, as Serve's own command line does it: the REST API would need Ray's dashboard.
"""

from __future__ import annotations

import time
from typing import Any

from cluster.errors import UserError
from serve_app.blueprint import Blueprint

IMPORT_PATH = "serve_app.app:build"
READY_TIMEOUT_S = 600.0
"""A large model's weights are read within it; what fails is told at once."""


def deploy_scaled(blueprint: Blueprint, policy: dict[str, Any], app_name: str) -> None:
    """Returns when every variant's minimum runs. UserError where it would end other applications."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    client = _get_global_client()
    _refuse_to_end_others(client.get_serve_details()["applications"], app_name)
    application = ServeApplicationSchema(
        name=app_name,
        route_prefix="/",
        import_path=IMPORT_PATH,
        args={"blueprint": blueprint.to_json()},
        autoscaling_policy=policy,
    )
    client.deploy_apps(ServeDeploySchema(applications=[application]))
    _wait_running(app_name)


def _refuse_to_end_others(applications: dict[str, Any], app_name: str) -> None:
    """A declarative deployment ends what an earlier one declared and it does not."""
    others = [name for name, app in applications.items() if app.get("source") == "declarative" and name != app_name]
    if others:
        raise UserError(
            f"RAY_ADDRESS: Serve there runs {', '.join(others)} from a config file, which an autoscaled fleet ends;"
            " give it a cluster of its own, or say autoscaling.enabled: false"
        )


def _wait_running(app_name: str) -> None:
    from ray import serve

    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        application = serve.status().applications.get(app_name)
        if application is not None and application.status == "RUNNING":
            return
        if application is not None and application.status == "DEPLOY_FAILED":
            raise RuntimeError(f"the fleet did not start: {application.message}")
        time.sleep(0.1)
    raise RuntimeError(f"the fleet did not start within {READY_TIMEOUT_S:.0f} s")
