"""Traces of real traffic: Azure LLM inference 2023 and 2024, BurstGPT, Mooncake; it gives requests no class.

Azure    CSV    TIMESTAMP (ISO 8601), ContextTokens, GeneratedTokens      github.com/Azure/AzurePublicDataset
BurstGPT CSV    Timestamp (seconds), Model, Request tokens, Response tokens, Total tokens, Log Type; later files
                have Session ID and Elapsed time too                       github.com/HPMLL/BurstGPT
Mooncake JSONL  timestamp (ms), input_length, output_length, hash_ids (chained, one for 512 tokens)
                                                                           github.com/kvcache-ai/Mooncake
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from autoscaling.simulator.arrivals import TracedRequest
from cluster.errors import UserError, did_you_mean

TRACE_FORMATS = "Azure (TIMESTAMP,ContextTokens,GeneratedTokens), BurstGPT or Mooncake"


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvFormat:
    name: str
    time: str
    prompt_tokens: str
    output_tokens: str
    seconds: Callable[[str], float]
    skips_unanswered: bool
    """Whether 0 output tokens mean a failure, as BurstGPT says."""

    @property
    def columns(self) -> tuple[str, str, str]:
        return self.time, self.prompt_tokens, self.output_tokens


def _unix_s(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


AZURE = CsvFormat(
    name="Azure",
    time="TIMESTAMP",
    prompt_tokens="ContextTokens",
    output_tokens="GeneratedTokens",
    seconds=_unix_s,
    skips_unanswered=False,
)
BURST_GPT = CsvFormat(
    name="BurstGPT",
    time="Timestamp",
    prompt_tokens="Request tokens",
    output_tokens="Response tokens",
    seconds=float,
    skips_unanswered=True,
)
MOONCAKE_KEYS = ("timestamp", "input_length", "output_length")


def read_trace(path: Path) -> list[TracedRequest]:
    """Times from 0 on, at least a token each way; UserError naming file, line and the mend."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            requests = list(_from_the_first(_in_order(_rows(path, stream), path)))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the trace's file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text; give an unpacked trace: {TRACE_FORMATS}") from None
    if not requests:
        raise UserError(f"{path}: no requests in it; give a trace with rows: {TRACE_FORMATS}")
    return requests


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    prefix: tuple[int, ...] = ()


def _rows(path: Path, stream: TextIO) -> Iterator[_Row]:
    first = stream.readline()
    if not first.strip():
        return iter(())
    if first.lstrip().startswith("{"):
        return _mooncake_rows(path, [first], stream)
    header = [name.strip() for name in next(csv.reader([first]))]
    form = BURST_GPT if {"Request tokens", "Response tokens", "Timestamp"} & set(header) else AZURE
    return _csv_rows(path, stream, form, header)


def _csv_rows(path: Path, stream: TextIO, form: CsvFormat, header: Sequence[str]) -> Iterator[_Row]:
    for name in form.columns:
        if name not in header:
            raise UserError(
                f"{path}:1: no column {name!r} of the {form.name} format; {did_you_mean(name, header)}"
                f" Rename it; formats: {TRACE_FORMATS}"
            )
    places = [header.index(name) for name in form.columns]
    for line, values in enumerate(csv.reader(stream), 2):
        if not values:
            continue
        if len(values) <= max(places):
            raise UserError(f"{path}:{line}: {len(values)} values for {len(header)} columns; is the file cut off?")
        time, prompt, output = (values[place] for place in places)
        output_tokens = _tokens(output, form.output_tokens, path, line)
        if output_tokens or not form.skips_unanswered:
            yield _Row(
                line,
                _seconds(time, form, path, line),
                max(1, _tokens(prompt, form.prompt_tokens, path, line)),
                max(1, output_tokens),
            )


def _seconds(text: str, form: CsvFormat, path: Path, line: int) -> float:
    try:
        return form.seconds(text)
    except ValueError:
        example = "2023-11-16 18:15:46.68" if form is AZURE else "12.5"
        raise UserError(f"{path}:{line}: {form.time} {text!r} is no time; write it as {example}") from None


def _tokens(value: Any, name: str, path: Path, line: int) -> int:
    try:
        tokens = int(value)
    except (TypeError, ValueError):
        raise UserError(f"{path}:{line}: {name} {value!r} is no count of tokens; write an integer") from None
    if tokens < 0:
        raise UserError(f"{path}:{line}: {name} {tokens} is negative; drop the row or mend the count")
    return tokens


def _mooncake_rows(path: Path, first: Sequence[str], rest: Iterable[str]) -> Iterator[_Row]:
    for line, text in enumerate((*first, *rest), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{line}: not a JSON object ({error.msg}); is the file cut off?") from None
        for key in MOONCAKE_KEYS:
            if key not in row:
                raise UserError(f"{path}:{line}: no {key!r} of the Mooncake format; {did_you_mean(key, row)} Rename it")
        if not isinstance(row["timestamp"], int | float):
            raise UserError(f"{path}:{line}: timestamp {row['timestamp']!r} is no time; write milliseconds, as 1500")
        yield _Row(
            line,
            row["timestamp"] / 1e3,
            max(1, _tokens(row["input_length"], "input_length", path, line)),
            max(1, _tokens(row["output_length"], "output_length", path, line)),
            tuple(row.get("hash_ids", ())),
        )


def _in_order(rows: Iterable[_Row], path: Path) -> Iterator[_Row]:
    last_s = float("-inf")
    for row in rows:
        if row.at_s < last_s:
            raise UserError(
                f"{path}:{row.line}: {last_s - row.at_s:g} s before the line above; sort the file by its time first"
            )
        last_s = row.at_s
        yield row


def _from_the_first(rows: Iterable[_Row]) -> Iterator[TracedRequest]:
    first_s: float | None = None
    for row in rows:
        first_s = row.at_s if first_s is None else first_s
        yield TracedRequest(row.at_s - first_s, row.prompt_tokens, row.output_tokens, row.prefix)
