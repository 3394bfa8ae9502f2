"""Folders that Hugging Face's `save_to_disk` wrote: which of their files are a dataset, in order; it reads no rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from batch_jobs.stores import StoredFile
from cluster.errors import UserError

DATASET, DATASET_DICT = "state.json", "dataset_dict.json"


def dataset_files(name: str, files: Mapping[str, StoredFile], split: str | None) -> dict[str, StoredFile] | None:
    """The Arrow files of a dataset, or of one split of several; None where the folder holds no dataset.

    UserError where the split is not there, or not named and one of several.
    """
    if DATASET_DICT in files:
        splits = _json(name, files[DATASET_DICT]).get("splits", [])
        return _files_of(name, files, f"{_chosen(name, splits, split)}/")
    if DATASET in files:
        found = _files_of(name, files, "")
        own = _json(name, files[DATASET]).get("_split")
        if split is not None and own is not None and own != split:
            raise UserError(f"--split {split}: {name} is the split {own!r}")
        return found
    return None


def _chosen(name: str, splits: list[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None:
        raise UserError(f"{name}: has the splits {', '.join(splits)}; name one with --split")
    if split not in splits:
        raise UserError(f"--split {split}: {name} has the splits {', '.join(splits)}")
    return split


def _files_of(name: str, files: Mapping[str, StoredFile], prefix: str) -> dict[str, StoredFile]:
    if prefix + DATASET not in files:
        raise UserError(f"{name}: {prefix}{DATASET} is missing")
    state = _json(name, files[prefix + DATASET])
    if state.get("_indices_data_files"):
        raise UserError(f"{name}: its rows are picked by an index; save it again after dataset.flatten_indices()")
    names = [prefix + str(file["filename"]) for file in state.get("_data_files", [])]
    missing = [file for file in names if file not in files]
    if missing or not names:
        raise UserError(f"{name}: {missing[0]} is missing" if missing else f"{name}: {prefix}{DATASET} names no files")
    return {file: files[file] for file in names}


def _json(name: str, file: StoredFile) -> dict[str, Any]:
    try:
        with file.open() as stream:
            value = json.load(stream)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: {file.path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{name}: {file.path} is no JSON object")
    return value
