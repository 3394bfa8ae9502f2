"""fleet.yaml as text: reading, editing, and errors of one line that name the key and the mend; it knows no section."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cluster.errors import UserError, did_you_mean

DEFAULT_PATH = Path("fleet.yaml")

Model = TypeVar("Model", bound=BaseModel)

EXAMPLES = {
    "_ms": "milliseconds, for example 500",
    "_s": "seconds, for example 20",
    "_tokens": "a number of tokens, for example 16384",
    "_bytes": "a number of bytes, for example 4194304",
    "quality": "a fraction, for example 0.97",
    "utilization": "a fraction, for example 0.9",
    "headroom": "a fraction, for example 0.15",
    "hysteresis": "a fraction, for example 0.1",
    "swap_gain": "a fraction, for example 0.15",
    "log": "auto, null or a path, for example decisions.jsonl",
    "enabled": "auto, true or false",
    "price_per_hour": "US dollars, for example 2.99",
    "max_context": "a number of tokens, for example 4096",
    "token_budget": "a number of tokens, for example 512",
    "port": "a port, for example 8000",
    "method": "for example int8",
    "model": "a section, at least {source: embedded:smollm2-135m}",
    "source": "embedded:smollm2-135m, a Hugging Face id or a folder",
}
"""What to give instead, by the end of the key."""

EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "model": "a section with keys of its own",
    "dict": "a section with keys of its own",
}
"""By the start of pydantic's error type."""


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would silently keep the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a fleet.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path.name}: not YAML: {' '.join(_problem(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path.name}: holds no sections; it needs at least model: {{source: ...}}")
    # `auth:` with every key under it commented out means the defaults.
    return {key: value for key, value in data.items() if value is not None}


def validated(model: type[Model], data: Any, file_name: str) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = list(_lines(model, data, error.errors()))
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise UserError(f"{file_name}: {lines[0]}{more}") from None


def with_quality(text: str, variant: str, quality: float) -> str:
    """The text of a fleet.yaml with `variants.<variant>.quality` set and every other character kept."""
    variants = child(yaml.compose(text, yaml.SafeLoader), "variants")
    node = child(variants, variant) if variants is not None else None
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"variants.{variant}: not in the file as a section, so its quality cannot be registered there")
    old = child(node, "quality")
    if old is not None:
        return text[: old.start_mark.index] + f"{quality:.4f}" + text[old.end_mark.index :]
    start = node.start_mark
    if node.flow_style:
        comma = ", " if node.value else ""
        return text[: start.index + 1] + f"quality: {quality:.4f}{comma}" + text[start.index + 1 :]
    return text[: start.index] + f"quality: {quality:.4f}\n" + " " * start.column + text[start.index :]


def with_variant(text: str, variant: str, section: Mapping[str, Any]) -> str:
    """The text of a fleet.yaml with one more entry at the end of `variants`, every other character kept."""
    variants = child(yaml.compose(text, yaml.SafeLoader), "variants")
    if not isinstance(variants, yaml.MappingNode) or not variants.value:
        raise UserError(f"variants: not in the file as a section, so {variant} cannot be added there")
    entry = yaml.safe_dump({variant: dict(section)}, default_flow_style=True, sort_keys=False, width=sys.maxsize)
    entry = entry.strip()[1:-1]  # without the braces around it
    end = last_leaf(variants).end_mark.index
    if variants.flow_style:
        return f"{text[:end]}, {entry}{text[end:]}"
    indent = " " * variants.value[0][0].start_mark.column
    line_end = text.find("\n", end)  # past a comment at the end of the line
    head, tail = (text, "") if line_end < 0 else (text[:line_end], text[line_end:])
    return f"{head}\n{indent}{entry}{tail}"


def last_leaf(node: yaml.MappingNode) -> yaml.Node:
    """Where the section's own characters end: a block's end mark lies past the comments and blank lines after it."""
    last: yaml.Node = node.value[-1][1]
    is_block = isinstance(last, yaml.MappingNode) and not last.flow_style and last.value
    return last_leaf(last) if isinstance(last, yaml.MappingNode) and is_block else last


def _problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error)


def child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """A mapping's value under `key`, None without one."""
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _lines(model: type[BaseModel], data: Any, errors: Sequence[ErrorDetails]) -> Iterator[str]:
    """One line a place: a value that may be "auto" or a number fails twice, and only the number's words help."""
    told: set[tuple[str, ...]] = set()
    for error in sorted(errors, key=lambda error: error["type"] == "literal_error"):
        place = _place(error["loc"], data)
        if place not in told:
            told.add(place)
            words = _words(model, place, error)
            yield f"{'.'.join(place)}: {words}" if place else words


def _place(loc: Sequence[int | str], data: Any) -> tuple[str, ...]:
    """pydantic's location without the names of union members that it puts after the key."""
    place: list[str] = []
    for step in loc:
        if step == "[key]" or (place and not isinstance(data, dict)):
            break
        place.append(str(step))
        data = data.get(step) if isinstance(data, dict) else None
    return tuple(place)


def _words(model: type[BaseModel], place: tuple[str, ...], error: ErrorDetails) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    key = place[-1] if place else ""
    match kind:
        case "value_error":
            return str(context["error"])
        case "extra_forbidden":
            return f"unknown key; {did_you_mean(key, _known_keys(model, place[:-1]))}"
        case "missing":
            return f"missing; give {_example(key)}"
        case "string_pattern_mismatch":
            return f"{value!r} may hold letters, digits, '.', '_' and '-' only"
        case "too_short":
            return "empty; give at least one"
        case "literal_error":
            return f"{value!r} is not one of {context['expected']}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            sign = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}[kind]
            bound = next(iter(context.values()))
            return f"{value!r} is not {sign} {bound:g}; give {_example(key)}"
    expected = EXPECTED.get(kind.split("_")[0])
    if expected is None or kind == "string_too_short":
        return f"{value!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
    return f"{value!r} is not {expected}; give {_example(key)}"


def _example(key: str) -> str:
    return next((text for end, text in EXAMPLES.items() if key.endswith(end)), "another value")


def _known_keys(model: type[BaseModel], place: tuple[str, ...]) -> list[str]:
    """The keys that the section at `place` knows; a step through a dict of sections stays at the section's type."""
    for step in place:
        field = next((f for name, f in model.model_fields.items() if step in (name, f.alias)), None)
        if field is None:
            continue
        sections = [field.annotation, *get_args(field.annotation)]
        model = next((t for t in sections if isinstance(t, type) and issubclass(t, BaseModel)), model)
    return [field.alias or name for name, field in model.model_fields.items()]
