"""FilePolicy: the scaling policy of a fleet.yaml, for a Serve that is told of it in a config file; it decides nothing.

Serve pickles this module by value, so it holds little and imports the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from cluster.config import FleetConfig
from serve_app.blueprint import Blueprint
from serve_app.scaling_terms import decision_log_path, serve_policy
from serve_app.serving_policy import ServingPolicy

RETRY_S = 60.0
log = logging.getLogger("ray.serve")


class FilePolicy:
    """Made when the deployments are there: by then the application has measured the profiles, and where the policy runs
    there may be no GPU to measure them on."""

    def __init__(self, *, config: str) -> None:
        self._config = config
        self._policy: ServingPolicy | None = None
        self._tried_s = -RETRY_S

    def __call__(self, contexts: Mapping[Any, Any]) -> tuple[dict[Any, int | float], dict[Any, Any]]:
        """The controller's loop deploys and heals after this call: a file that cannot be read costs scaling alone."""
        if contexts and self._policy is None and time.monotonic() - self._tried_s > RETRY_S:
            self._tried_s = time.monotonic()
            try:
                self._policy = made_from(self._config)
            except Exception:
                log.exception("%s: no scaling policy can be made of it; the fleet stays as it is", self._config)
        return self._policy(contexts) if self._policy is not None else ({}, {})


def made_from(config: str) -> ServingPolicy:
    blueprint = Blueprint.of(FleetConfig.load(config)).with_known_profiles()
    return ServingPolicy(**serve_policy(blueprint, decision_log_path(blueprint))["policy_kwargs"])
