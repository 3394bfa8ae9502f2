"""The one place that knows the package grafana-api: requests to a Grafana, and what its refusals mean in a line."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import requests
from grafana_api.grafana_api import GrafanaException
from grafana_api.grafana_face import GrafanaFace

from cluster.errors import UserError

TIMEOUT_S = 10.0


class GrafanaError(Exception):
    """What Grafana did not do, in one line without the token."""


class Grafana:
    """Paths are below /api. GrafanaError for whatever it refuses; UserError for an address that is none."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--url {url}: is no address of a Grafana; give one such as http://localhost:3000")
        self._url = url
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        prefix = parts.path.strip("/")
        self._api = GrafanaFace(
            auth=token,
            host=host,
            port=parts.port,
            protocol=parts.scheme,
            url_path_prefix=f"{prefix}/" if prefix else "",
            timeout=TIMEOUT_S,
        ).api

    def find(self, path: str) -> dict[str, Any] | None:
        """None where there is nothing."""
        try:
            return self._call("GET", path)
        except GrafanaException as error:
            if error.status_code == HTTPStatus.NOT_FOUND:
                return None
            raise self._refused(path, error) from None

    def create(self, path: str, body: dict[str, Any]) -> None:
        self._change("POST", path, body)

    def replace(self, path: str, body: dict[str, Any]) -> None:
        self._change("PUT", path, body)

    def _change(self, method: str, path: str, body: dict[str, Any]) -> None:
        try:
            self._call(method, path, body)
        except GrafanaException as error:
            raise self._refused(path, error) from None

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            found: dict[str, Any] = getattr(self._api, method)(path, json=body)
        except requests.exceptions.ConnectionError:
            raise GrafanaError(f"{self._url}: no Grafana answers there; is it running, and is --url right?") from None
        except requests.exceptions.Timeout:
            raise GrafanaError(f"{self._url}: Grafana did not answer within {TIMEOUT_S:g} s; try again") from None
        except requests.exceptions.RequestException as error:  # an answer that is no JSON is one of them
            raise GrafanaError(f"{self._url}: what answers there is no Grafana ({type(error).__name__})") from None
        return found

    def _refused(self, path: str, error: GrafanaException) -> GrafanaError:
        match error.status_code:
            case HTTPStatus.UNAUTHORIZED:
                return GrafanaError(f"{self._url}: the token is not valid there; make one for a service account")
            case HTTPStatus.FORBIDDEN:
                return GrafanaError(f"{self._url}: the token may not do {path}; it needs the role Admin")
            case HTTPStatus.PRECONDITION_FAILED:
                return GrafanaError(
                    f"{self._url}: {path} was changed by somebody else meanwhile (version conflict); look at it and"
                    " publish again"
                )
        told = " ".join(str(error.message).split())[:200]
        return GrafanaError(f"{self._url}: {path}: {told}")
