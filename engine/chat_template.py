"""The model's own chat template, rendered in a sandbox; it knows no tokens and trusts neither template nor messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, str]
"""At least role and content."""


class ChatTemplate:
    """Turns messages into the text the model was trained on, up to where its answer begins."""

    def __init__(self, folder: Path) -> None:
        file = folder / "tokenizer_config.json"
        config = json.loads(file.read_text()) if file.exists() else {}
        self._special_tokens = {
            name: token["content"] if isinstance(token, dict) else token
            for name, token in config.items()
            if name.endswith("_token") and isinstance(token, dict | str)
        }
        source = _template_source(folder, config)
        self._template = None if source is None else _environment().from_string(source)

    def render(self, messages: Sequence[Message]) -> str:
        """ValueError where the model has no template or the template refuses these messages."""
        if self._template is None:
            raise ValueError("this model has no chat template; send a plain prompt to /v1/completions instead")
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special_tokens
            )
        except TemplateError as error:
            raise ValueError(f"messages: the model's chat template refuses them: {error}") from error


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template's own file where there is one, else the entry of tokenizer_config.json, a text or a list by name."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    source = config.get("chat_template")
    if isinstance(source, list):
        return next((entry["template"] for entry in source if entry["name"] == "default"), None)
    return source


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up, which is what the templates are written against."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; here its contents stand as they are."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as a plain set)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """jinja2's own escapes HTML characters, which a model has not seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
