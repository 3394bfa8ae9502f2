"""What metrics cost: the same work on a fleet with them and on one without, in turn; it knows no metric by name."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from rich.table import Table

from autoscaling.simulator.arrivals import Arrival
from cluster.config import FleetConfig
from cluster.errors import UserError
from serve_app.bench.stream_client import Answered, StreamClient

PROMPT_TOKENS, OUTPUT_TOKENS = 32, 64
FEWEST_TOKENS = 10_000
"""Every vocabulary has so many."""
END_TIMEOUT_S = 60.0
WARM_UP_REQUESTS = 2
"""Of each stream, that count for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Output tokens a second, received over HTTP."""

    on: float
    off: float

    @property
    def ratio(self) -> float:
        return self.on / self.off


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Streams that each send their next request when the last has ended."""

    streams: int
    requests: int
    """Of each stream."""


def pairs(config: FleetConfig, load: Load, num_pairs: int) -> Iterator[Pair]:
    """One fleet after another, the first of a pair once with and once without metrics, so that a drift of the host's
    speed falls on both alike."""
    for number in range(num_pairs):
        rates = {enabled: _rate(config, load, enabled) for enabled in (number % 2 == 0, number % 2 == 1)}
        yield Pair(on=rates[True], off=rates[False])


def _rate(config: FleetConfig, load: Load, enabled: bool) -> float:
    sections = config.model_dump(by_alias=True, exclude_unset=True)
    settings = sections | {"metrics": {"enabled": enabled}, "http": {"port": 0}}
    with _served(settings) as base_url:
        return asyncio.run(_tokens_per_s(base_url, config, load))


@contextmanager
def _served(settings: dict[str, Any]) -> Iterator[str]:
    """`quantfleet serve` in a process of its own, since Ray reads its settings once a process; the API's address."""
    with TemporaryDirectory(prefix="quantfleet-") as folder:
        file, log = Path(folder) / "fleet.yaml", Path(folder) / "log"
        file.write_text(yaml.safe_dump(settings))
        with log.open("w") as written:
            command = [sys.executable, "-m", "quantfleet", "serve", str(file)]
            process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield _base_url(process, log)
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(END_TIMEOUT_S)


def _base_url(process: subprocess.Popen[bytes], log: Path) -> str:
    while process.poll() is None:
        if found := re.search(r'base_url="([^"]+)"', log.read_text()):
            return found[1]
        time.sleep(0.2)
    raise UserError(f"quantfleet serve ended: {log.read_text().strip()[-500:]}")


async def _tokens_per_s(base_url: str, config: FleetConfig, load: Load) -> float:
    client = StreamClient(f"{base_url}/", config.model.name, vocab=FEWEST_TOKENS)
    arrival = Arrival(
        at_s=0.0,
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
        slo_class=config.default_class,
    )
    numbers = count()

    async def stream(num_requests: int) -> int:
        tokens = 0
        for _ in range(num_requests):
            answer = await client.send(arrival, next(numbers))
            if not isinstance(answer, Answered):
                raise UserError(f"the fleet refused a request ({answer.reason}); give it more room, or fewer --streams")
            tokens += answer.output_tokens
        return tokens

    try:
        await asyncio.gather(*(stream(WARM_UP_REQUESTS) for _ in range(load.streams)))
        began_s = time.monotonic()
        tokens = sum(await asyncio.gather(*(stream(load.requests) for _ in range(load.streams))))
        return tokens / (time.monotonic() - began_s)
    finally:
        await client.close()


def observability_table(found: list[Pair]) -> Table:
    ratios = [pair.ratio for pair in found]
    table = Table("pair", "tokens/s with metrics", "without", "ratio", title="Cost of metrics", title_justify="left")
    for number, pair in enumerate(found, 1):
        table.add_row(str(number), f"{pair.on:.1f}", f"{pair.off:.1f}", f"{pair.ratio:.3f}")
    table.add_row("median", "", "", f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    return table
