"""Launch configurations measured on a card, read once from `tuned/<name of the card>.json`; it knows no kernel.

The file maps an operation to a list of {"when": conditions, "config": fields}; the first whose conditions all hold is
taken. A condition names a size, equal to its value, or with `_min` or `_max` after the name at least or at most it.
Where no entry fits, or there is no file for the card, an operation computes its default.
"""

import json
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

Config = TypeVar("Config")
Entry = dict[str, dict[str, int]]
FOLDER = Path(__file__).parent / "tuned"


def tuned_config(operation: str, config: type[Config], tensor: Tensor, **sizes: int) -> Config | None:
    """The entry for these sizes on the tensor's card."""
    fields = _fields_on(tensor.device.index, operation, **sizes) if tensor.is_cuda else None
    return None if fields is None else config(**fields)


@cache
def _fields_on(device: int, operation: str, **sizes: int) -> dict[str, int] | None:
    return first_match(_entries(torch.cuda.get_device_name(device)).get(operation, []), sizes)


def first_match(entries: list[Entry], sizes: dict[str, int]) -> dict[str, int] | None:
    """The fields of the first entry whose conditions hold. KeyError where a condition names no size."""
    return next((e["config"] for e in entries if all(_holds(c, v, sizes) for c, v in e["when"].items())), None)


def _holds(condition: str, value: int, sizes: dict[str, int]) -> bool:
    if condition.endswith("_min"):
        return sizes[condition.removesuffix("_min")] >= value
    if condition.endswith("_max"):
        return sizes[condition.removesuffix("_max")] <= value
    return sizes[condition] == value


@cache
def _entries(card: str) -> dict[str, list[Entry]]:
    path = FOLDER / f"{card.replace(' ', '_')}.json"
    return json.loads(path.read_text()) if path.exists() else {}
