"""Types of single parameters: what each accepts and how it says what it does not; it knows no body as a whole."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

MAX_STOP_STRINGS = 16


def _stop(value: Any) -> Any:
    strings = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(text, str) for text in strings):
        raise ValueError("give a string or a list of strings")
    if len(strings) > MAX_STOP_STRINGS:
        raise ValueError(f"{len(strings)} strings, at most {MAX_STOP_STRINGS}")
    if "" in strings:
        raise ValueError("an empty string would stop before the first token")
    return strings


def _logit_bias(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("give an object of token ids and biases")
    biases = {}
    for token, bias in value.items():
        if not str(token).isascii() or not str(token).isdigit():
            raise ValueError(f"{token!r} is not a token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(f"the bias of token {token} is {bias!r}; give a number from -100 to 100")
        biases[int(token)] = float(bias)
    return biases


def _slo(value: Any) -> Any:
    if value is not None and not isinstance(value, str | dict):
        raise ValueError("give a class name or an object of limits")
    return value


def _not_supported(value: Any) -> Any:
    if value not in (None, [], {}):
        raise ValueError("not supported yet")
    return value


def _no_tool(value: Any) -> Any:
    if value not in (None, "none"):
        raise ValueError("tools are not supported yet")
    return value


def _text_only(value: Any) -> Any:
    if value not in (None, {"type": "text"}, ["text"]):
        raise ValueError("only text is supported yet")
    return value


def _content(value: Any) -> Any:
    """A string, or text parts; their texts are joined."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("give a string or a list of text parts")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError('only parts of the form {"type": "text", "text": "..."} are supported')
    return "".join(part["text"] for part in value)


def _prompts(value: Any) -> Any:
    """A text, texts, token ids, or lists of token ids: always a list of prompts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("give a string, a list of strings, token ids, or a list of token id lists, not empty")
    if all(_is_token(item) for item in value):
        return [value]
    if all(isinstance(item, str) for item in value):
        return value
    if all(isinstance(item, list) and item and all(_is_token(token) for token in item) for item in value):
        return value
    raise ValueError("give strings, or token ids, not a mixture; and no empty list")


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


StopStrings = Annotated[list[str], BeforeValidator(_stop)]
LogitBias = Annotated[dict[int, float], BeforeValidator(_logit_bias)]
Refused = Annotated[Any, AfterValidator(_not_supported)]
Count = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Slo = Annotated[str | dict[str, Any] | None, BeforeValidator(_slo)]
ToolChoice = Annotated[Any, AfterValidator(_no_tool)]
TextFormat = Annotated[Any, AfterValidator(_text_only)]
Content = Annotated[str, BeforeValidator(_content)]
Prompts = Annotated[list[str | list[int]], BeforeValidator(_prompts)]
