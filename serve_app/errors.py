"""Errors in OpenAI's shape: status, type, parameter, code; it knows what went wrong, not where the request was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError

from engine.openai_problem import problem_of


class ApiError(Exception):
    """What a client is told instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def bad_parameter(param: str | None, message: str, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def unknown_model(name: str, known: list[str]) -> ApiError:
    message = f"The model '{name}' does not exist; known: {', '.join(known)}"
    return ApiError(404, message, param="model", code="model_not_found")


def body_too_large(limit_bytes: int) -> ApiError:
    message = f"The request body is larger than {limit_bytes} bytes (http.max_body_bytes)"
    return ApiError(413, message, code="request_too_large")


def context_too_long(context: int, prompt: int, completion: int | None) -> ApiError:
    wanted = (
        f"your prompt has {prompt} tokens"
        if completion is None
        else f"you requested {prompt + completion} tokens ({prompt} in the prompt, {completion} for the completion)"
    )
    message = f"This model's maximum context length is {context} tokens, but {wanted}"
    return ApiError(400, message, param="max_tokens" if completion else "prompt", code="context_length_exceeded")


def fleet_full(reason: str, retry_after_s: float) -> ApiError:
    return ApiError(
        429,
        f"The fleet is full: {reason}",
        kind="rate_limit_error",
        code="fleet_full",
        headers={"Retry-After": str(max(1, round(retry_after_s)))},
    )


def too_many_requests(limit: int, key: str) -> ApiError:
    return ApiError(
        429,
        f"This key already has {limit} requests in flight ({key})",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": "1"},
    )


def replica_lost(detail: str) -> ApiError:
    message = f"The replica that served this request was lost: {detail}"
    return ApiError(503, message, kind="server_error", code="replica_lost", headers={"Retry-After": "1"})


def shutting_down() -> ApiError:
    message = "The fleet is shutting down"
    return ApiError(503, message, kind="server_error", code="shutting_down", headers={"Connection": "close"})


def of_validation(error: ValidationError) -> ApiError:
    problem = problem_of(error)
    return bad_parameter(problem.param, problem.message, problem.code)
