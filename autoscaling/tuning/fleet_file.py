"""A fleet.yaml with tuned settings and every other character kept, comments too; it tunes nothing.

The evidence stands as comments at its end, where the next tuning replaces it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import yaml

from autoscaling.tuning.search_space import RANGES, Settings, differing, settings_of, with_settings
from cluster.config import BUILT_IN, FleetConfig
from cluster.config_file import DEFAULT_PATH, child, last_leaf
from cluster.errors import UserError

SECTION = "autoscaling"
EVIDENCE = "# Evidence of `quantfleet tune`"
Edit = tuple[int, int, str]
"""From, to, and what stands there instead."""


def fleet_text(config: Path | None) -> str:
    """Of the file that FleetConfig.load reads, line ends as they are."""
    path = config if config is not None else DEFAULT_PATH if DEFAULT_PATH.exists() else BUILT_IN
    with path.open(encoding="utf-8", newline="") as stream:
        return stream.read()


def tuned_text(text: str, settings: Settings, evidence: Sequence[str] = ()) -> str:
    """`evidence`: lines that begin with #; UserError where an edit would change more than these settings."""
    kept = _without_evidence(text)
    old = _config(kept)
    changed = differing(settings, settings_of(old.autoscaling))
    edited = _with_section_keys(kept, {key: _digits(value) for key, value in changed.items()}) if changed else kept
    if evidence:
        edited = _ended(edited) + "".join(f"{line}\n" for line in (EVIDENCE, *evidence))
    expected = old.model_copy(update={SECTION: with_settings(old.autoscaling, changed)})
    try:
        is_same = _config(edited).model_dump() == expected.model_dump()
    except (yaml.YAMLError, UserError):
        is_same = False
    if not is_same:
        raise UserError(
            f"{SECTION}: the section is written in a way that cannot be edited with its comments kept;"
            " write it as plain `key: value` lines without anchors"
        )
    return edited


def check_editable(text: str) -> None:
    """UserError, as tuned_text, before anything is searched."""
    settings = settings_of(_config(_without_evidence(text)).autoscaling)
    tuned_text(text, {key: each.high if settings[key] == each.low else each.low for key, each in RANGES.items()})


def _config(text: str) -> FleetConfig:
    data = yaml.safe_load(text)
    return FleetConfig.of({key: value for key, value in data.items() if value is not None})


def _without_evidence(text: str) -> str:
    before, head, after = text.partition(EVIDENCE)
    is_last = all(line.startswith("#") or not line.strip() for line in after.splitlines()[1:])
    return before if head and is_last else text


def _ended(text: str) -> str:
    return text if text.endswith("\n") else f"{text}\n"


def _digits(value: float) -> str:
    """Without an exponent: YAML 1.1 reads 1e-05 as a text."""
    return np.format_float_positional(value, trim="-")


def _with_section_keys(text: str, values: dict[str, str]) -> str:
    root = yaml.compose(text, yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    section = child(root, SECTION)
    if section is None:
        return _applied(text, [_with_section(text, root, values)])
    if not isinstance(section, yaml.MappingNode) or not section.value:
        # `autoscaling:` with all its keys commented out, null or {}.
        start, end = section.start_mark.index, section.end_mark.index
        space = "" if text[start - 1].isspace() else " "
        return _applied(text, [(start, end, f"{space}{{{_in_flow(values)}}}")])
    nodes = {key: child(section, key) for key in values}
    edits = [
        (node.start_mark.index, node.end_mark.index, values[key]) for key, node in nodes.items() if node is not None
    ]
    missing = {key: values[key] for key, node in nodes.items() if node is None}
    return _applied(text, [*edits, _appended(text, section, missing)] if missing else edits)


def _with_section(text: str, root: yaml.MappingNode, values: dict[str, str]) -> Edit:
    if root.flow_style:
        end = root.value[-1][1].end_mark.index
        return end, end, f", {SECTION}: {{{_in_flow(values)}}}"
    line = "" if text.endswith("\n") else "\n"
    indent = " " * root.value[0][0].start_mark.column
    return len(text), len(text), f"{line}{indent}{SECTION}: {{{_in_flow(values)}}}\n"


def _appended(text: str, section: yaml.MappingNode, values: dict[str, str]) -> Edit:
    end = last_leaf(section).end_mark.index
    if section.flow_style:
        return end, end, f", {_in_flow(values)}"
    indent = " " * section.value[0][0].start_mark.column
    # Past a comment at the end of the line.
    line_end = text.find("\n", end)
    carriage = "\r" if line_end > 0 and text[line_end - 1] == "\r" else ""
    at = len(text) if line_end < 0 else line_end - len(carriage)
    return at, at, "".join(f"{carriage}\n{indent}{key}: {value}" for key, value in values.items())


def _in_flow(values: dict[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())


def _applied(text: str, edits: Iterable[Edit]) -> str:
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text
