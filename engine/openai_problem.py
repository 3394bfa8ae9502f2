"""What is wrong with a request, in OpenAI's words where it has some; it knows no HTTP and no model."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Of a request that is not valid: the fields of OpenAI's error object."""

    message: str
    param: str | None = None
    code: str | None = None


def problem_of(error: ValidationError) -> Problem:
    """The first thing wrong with a body."""
    first = error.errors(include_url=False)[0]
    param = path(first["loc"])
    if first["type"] == "json_invalid":
        return Problem(message=f"The body is not valid JSON: {first['ctx']['error']}")
    if first["type"] == "extra_forbidden":
        message = f"Unrecognized request argument supplied: {param}"
        return Problem(message=message, param=param, code="unknown_parameter")
    if first["type"] == "missing":
        message = f"Missing required parameter: '{param}'"
        return Problem(message=message, param=param, code="missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    return Problem(message=f"Invalid '{param}': {message}" if param else message, param=param or None)


def path(location: tuple[int | str, ...]) -> str:
    """("messages", 0, "role") as messages[0].role."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
