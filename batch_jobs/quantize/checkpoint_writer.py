"""The finished folder: tensors of all blocks in shards, config, tokenizer, card; it appears whole or not at all.

It is assembled in DIR.partial/checkpoint, config.json last, so that what a kill leaves there cannot be loaded either,
synced, and renamed to DIR.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from batch_jobs.disk import sync_folder
from batch_jobs.quantize.layer_store import LayerStore, PartialFolder
from batch_jobs.quantize.matrices import outer_tensors
from batch_jobs.quantize.model_card import model_card
from batch_jobs.quantize.report import QuantizeReport
from batch_jobs.quantize.safetensors_file import write_safetensors, write_text
from batch_jobs.quantize.source_model import SourceTensors
from cluster.errors import UserError

SHARD_BYTES = 5 * 10**9
"""As transformers splits: model-00001-of-00002.safetensors with an index."""
REPORT_FILE = "quantfleet.json"
COPIED = ("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json")
COPIED += ("generation_config.json", "chat_template*", "LICENSE*")


def refuse_output(output: Path, overwrite: bool) -> None:
    """UserError where a folder is there that the job may not replace: only a former result, and only if asked to."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir():
        raise UserError(f"-o {output}: is a file; give a folder that is not there yet")
    if not (output / REPORT_FILE).exists():
        raise UserError(f"-o {output}: is not empty and no former result; give a folder that is not there yet")
    if not overwrite:
        raise UserError(f"-o {output}: holds a quantised model already; give another folder or --overwrite")


def write_tensors(source: SourceTensors, store: LayerStore, folder: Path) -> int:
    """Shards and their index into an empty folder; the bytes of all tensors."""
    shards = list(_shards(_parts(source, store)))
    names = [_shard_name(at, len(shards)) for at in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    return total


def write_rest(
    source: SourceTensors, report: QuantizeReport, quantization_config: Mapping[str, Any] | None, folder: Path
) -> None:
    """Everything beside the tensors; config.json last, without which nothing loads the folder."""
    for pattern in COPIED:
        for file in sorted(source.folder.glob(pattern)):
            write_text(folder / file.name, file.read_text(encoding="utf-8"))
    write_text(folder / "README.md", model_card(report, source.shape.tied_embeddings))
    write_text(folder / REPORT_FILE, json.dumps(report.as_json(), indent=1) + "\n")
    config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    if quantization_config is not None:
        config["quantization_config"] = dict(quantization_config)
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    sync_folder(folder)


def empty_assembly(partial: PartialFolder) -> Path:
    """DIR.partial/checkpoint without what an earlier attempt left there."""
    folder = partial.path / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def put_in_place(assembled: Path, output: Path) -> None:
    """One rename; a former result goes away first, so DIR is there whole or not there."""
    if output.exists() and any(output.iterdir()):
        former = assembled.with_name("former")
        shutil.rmtree(former, ignore_errors=True)
        output.rename(former)
    assembled.replace(output)
    sync_folder(output.parent)


def _parts(source: SourceTensors, store: LayerStore) -> Iterator[tuple[str, Tensor]]:
    outer = outer_tensors(source.shape)
    first, last = "model.embed_tokens.weight", [name for name in outer if name != "model.embed_tokens.weight"]
    yield first, source.read(first, *outer[first])
    for index in range(source.shape.layers):
        yield from store.tensors(index).items()
    for name in last:
        yield name, source.read(name, *outer[name])


def _shards(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _shard_name(at: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{at + 1:05d}-of-{count:05d}.safetensors"
