"""A serving fleet as the engine of a job: where it is, what it serves, what that is to the job; it sends no row."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from batch_jobs.engine_identity import ServedVariant
from cluster.errors import UserError, did_you_mean

KEY_VARIABLE = "QUANTFLEET_API_KEY"
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetAddress:
    url: str
    """Without /v1 and without a slash at its end."""
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str) -> FleetAddress:
        """With the key of the environment."""
        if not url.startswith(("http://", "https://")):
            raise UserError(f"--fleet {url}: not an address; give one such as http://127.0.0.1:8000")
        return cls(url=url.rstrip("/").removesuffix("/v1"), api_key=os.environ.get(KEY_VARIABLE) or None)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetShare:
    """What a job has of a fleet: one variant, on what is idle there."""

    address: FleetAddress
    model: str
    """As its requests name it, with the variant."""
    served: ServedVariant
    num_replicas: int
    """Of the variant, when the job began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldFleet:
    """GET /v1/fleet, as far as a job needs it."""

    address: FleetAddress
    model: str
    served: dict[str, ServedVariant]
    num_replicas: dict[str, int]
    """By variant; one without any takes no background work."""

    @property
    def running(self) -> list[str]:
        """The variants that have a replica; UserError where none has."""
        running = [name for name, replicas in self.num_replicas.items() if replicas and name in self.served]
        if not running:
            raise UserError(f"{self.address.url}: no variant has a replica there, and background work wakes none")
        return running

    def share(self, variant: str | None) -> FleetShare:
        """UserError where the fleet does not serve it now; None: the first that has a replica."""
        running = self.running
        variant = running[0] if variant is None else variant
        if variant not in running:
            raise UserError(
                f"{self.address.url}: variant {variant!r} has no replica there now, and background work wakes none;"
                f" {did_you_mean(variant, running)}"
            )
        return FleetShare(
            address=self.address,
            model=f"{self.model}:{variant}",
            served=self.served[variant],
            num_replicas=self.num_replicas[variant],
        )


def told_by(address: FleetAddress) -> ToldFleet:
    """UserError where no fleet answers there, or none that takes jobs."""
    try:
        answer = httpx.get(f"{address.url}/v1/fleet", headers=address.headers, timeout=TIMEOUT_S)
    except httpx.HTTPError as error:
        raise UserError(
            f"{address.url}: no fleet answers there ({error}); start one with `quantfleet serve`,"
            " or name another with --fleet"
        ) from None
    if answer.status_code in (401, 403):
        raise UserError(f"{KEY_VARIABLE}: {address.url} wants a key that it knows; `quantfleet keys create` makes one")
    try:
        told = answer.raise_for_status().json()
        served = {each["name"]: _served(each["serves"]) for each in told["variants"] if each["serves"]}
        num_replicas = {each["name"]: len(each["replicas"]) for each in told["variants"]}
        return ToldFleet(address=address, model=told["model"], served=served, num_replicas=num_replicas)
    except (httpx.HTTPError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{address.url}: /v1/fleet does not say what it serves ({error}); is it a quantfleet of this version?"
        ) from None


def _served(value: dict[str, Any]) -> ServedVariant:
    return msgspec.convert(value, ServedVariant)
