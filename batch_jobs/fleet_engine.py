"""A fleet's idle capacity as EngineFeeder drives an engine, row by row over HTTP; it knows no files and no text.

A refusal (429) is no error but a wait. A fleet that is gone is waited for. A row whose replica is lost is sent again in
smaller company, so that one which ends its replica ends up alone and is an error of its own, while the others come
through; the fleet's own second try is not made for background work.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import httpx

from batch_jobs.fleet_requests import FinishedRow, finished_row, request_body
from batch_jobs.fleet_share import KEY_VARIABLE, FleetShare
from batch_jobs.fleet_window import FleetWindow
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.load import Load
from cluster.request import GenerationRequest, TokenDelta, Verdict
from engine.wire import StepMessage

MAX_LOSSES = 3
"""Replicas lost with a row in them."""
COMPANY = (8, 1)
"""Rows at once of those that have lost one replica, and two."""
RETRY_S = 1.0
"""Where the fleet does not say when to come again."""
AWAY_S = 600.0
"""A fleet that has not answered for so long ends the job, which the same command goes on with."""
CONNECT_TIMEOUT_S = 10.0
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""A row may wait for hours without a byte, so nothing but the kernel can tell that the other host is gone."""


class _Refused(Exception):  # noqa: N818  (an answer, not an error)
    """Not now."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__()
        self.retry_after_s = retry_after_s


class _Away(Exception):  # noqa: N818
    """No fleet answers."""


class _Lost(Exception):  # noqa: N818
    """The row's replica ended with it."""


class _Invalid(Exception):  # noqa: N818
    """The row can never run."""


class FleetEngine:
    """One job's rows in a fleet. `messages` raises UserError where they cannot go on."""

    def __init__(self, share: FleetShare, max_in_flight: int) -> None:
        self.load = Load(
            replica_id=share.address.url,
            variant=share.served.spec.variant.name,
            measured_at_s=time.time(),
            kv_tokens_capacity=share.num_replicas * share.served.spec.kv_capacity_tokens,
            kv_tokens_used=0,
        )
        """Of the fleet's size alone: its load is not the job's to know."""
        self._share = share
        self._client = httpx.AsyncClient(
            base_url=f"{share.address.url}/v1",
            headers=share.address.headers,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            transport=httpx.AsyncHTTPTransport(
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=max_in_flight),
                socket_options=KEEPALIVE,
            ),
        )
        self._window = FleetWindow(max_in_flight)
        self._company = [asyncio.Semaphore(most) for most in COMPANY]
        self._tasks: set[asyncio.Task[None]] = set()
        self._finished: list[TokenDelta] = []
        self._news = asyncio.Event()
        self._failure: BaseException | None = None
        self._stopped = False
        self._answered_s = time.monotonic()

    @classmethod
    def start(cls, share: FleetShare, spec: EngineSpec, rows_ahead: int) -> FleetEngine:
        """For `spec.max_sequences` rows that run at once, and so many times as many in flight."""
        return cls(share, rows_ahead * spec.max_sequences)

    async def ready(self) -> Load:
        """At once: whether the fleet answers, the first row tells."""
        return self.load

    async def submit(self, request: GenerationRequest) -> Verdict:
        """The row is on its way; what the fleet says of it comes as its one delta."""
        task = asyncio.create_task(self._run(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Verdict(admitted=True, reason="sent", load=self.load)

    async def messages(self) -> AsyncIterator[StepMessage]:
        """A row's tokens come all at once, with its end."""
        while not self._stopped:
            await self._news.wait()
            self._news.clear()
            deltas, self._finished = self._finished, []
            yield StepMessage(deltas=deltas, load=self.load)
            if self._failure is not None:
                raise self._failure

    async def stop(self) -> None:
        """What still runs in the fleet ends with its connections."""
        self._stopped = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()
        self._news.set()

    async def _run(self, request: GenerationRequest) -> None:
        try:
            delta = await self._until_answered(request)
            self._finished.append(delta)
        except Exception as failure:
            self._failure = failure
        self._news.set()

    async def _until_answered(self, request: GenerationRequest) -> TokenDelta:
        losses, body = 0, request_body(request, self._share.model)
        while True:
            try:
                finished = await self._in_company(body, losses)
            except _Refused as refused:
                # Those that were refused together come again one by one.
                await asyncio.sleep(refused.retry_after_s * random.uniform(0.5, 1.5))
            except _Away as away:
                self._check_patience(away)
                await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.5))
            except _Lost as lost:
                losses += 1
                if losses == MAX_LOSSES:
                    return _error(request, f"its replica ended {losses} times with it ({lost})")
            except _Invalid as invalid:
                return _error(request, str(invalid))
            else:
                return TokenDelta(
                    request_id=request.request_id,
                    token_ids=finished.token_ids,
                    logprobs=finished.logprobs or None,
                    finish_reason=finished.finish_reason,
                )

    async def _in_company(self, body: dict[str, Any], losses: int) -> FinishedRow:
        if losses == 0:
            return await self._in_window(body)
        async with self._company[losses - 1]:
            return await self._in_window(body)

    async def _in_window(self, body: dict[str, Any]) -> FinishedRow:
        await self._window.enter()
        refused = False
        try:
            return self._read(await self._post(body))
        except _Refused:
            refused = True
            raise
        finally:
            await self._window.leave(refused=refused)

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        try:
            return await self._client.post("/completions", json=body)
        except httpx.TransportError as error:
            raise _Away(str(error) or type(error).__name__) from None

    def _read(self, response: httpx.Response) -> FinishedRow:
        """One of the answers above, UserError where the job cannot go on."""
        status, error = response.status_code, _error_of(response)
        if status == HTTPStatus.OK:
            self._answered_s = time.monotonic()
            return self._finished_row(response)
        if error is None or error["code"] == "shutting_down":  # of a proxy that has nobody behind it, or not for long
            raise _Away(f"status {status}")
        self._answered_s = time.monotonic()
        message, url = str(error["message"]), self._share.address.url
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise UserError(f"{KEY_VARIABLE}: {url} does not take it any more: {message}")
        if status == HTTPStatus.NOT_FOUND:
            raise UserError(f"{url}: {message}; the job began with {self._share.model} there")
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            raise _Refused(_retry_after_s(response))
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _Lost(message)
        raise _Invalid(message)

    def _finished_row(self, response: httpx.Response) -> FinishedRow:
        fingerprint = response.headers.get("X-Quantfleet-Fingerprint")
        if fingerprint != self._share.served.fingerprint:
            raise UserError(
                f"{self._share.address.url}: serves {self._share.model} from other files, settings or code than when"
                " the job began; --new-run begins anew with those"
            )
        return finished_row(response.json())

    def _check_patience(self, away: _Away) -> None:
        away_s = time.monotonic() - self._answered_s
        if away_s > AWAY_S:
            raise UserError(
                f"{self._share.address.url}: no fleet has answered for {away_s:.0f} s ({away});"
                " the same command goes on when there is one again"
            )


def _error(request: GenerationRequest, reason: str) -> TokenDelta:
    return TokenDelta(request_id=request.request_id, token_ids=[], finish_reason="error", error=reason)


def _error_of(response: httpx.Response) -> dict[str, Any] | None:
    """OpenAI's error object; None where somebody else has answered."""
    try:
        error = response.json()["error"]
        return {"message": error["message"], "code": error["code"]}
    except (ValueError, KeyError, TypeError):
        return None


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return RETRY_S
