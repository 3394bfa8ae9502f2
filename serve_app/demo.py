"""The demo: the main job end to end on this machine, as a user would drive it; it uses only public ways in.

A fleet at several precisions is started, requests of every SLO class go to it over HTTP through the official openai
client, one batch job runs over a JSONL dataset on the same Ray cluster, and everything is ended again.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
from rich.console import Console
from rich.table import Table

from batch_jobs.generate import GenerateJob, GenerateReport, run_generate
from cluster.config import FleetConfig
from cluster.errors import UserError
from serve_app.deploy import fleet

QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three colours.",
    "Explain in two sentences why the sky is blue.",
    "What is 12 plus 30?",
    "Give a short tip for sleeping well.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request of the demo; `slo` is a class's name, or limits of the request's own."""

    question: str
    slo: str | dict[str, float | str]
    stream: bool
    model_suffix: str = ""
    max_tokens: int = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    ask: Ask
    variant: str
    reason: str
    predicted_ttft_ms: str
    predicted_tpot_ms: str
    ttft_ms: float | None
    tpot_ms: float | None
    total_s: float
    tokens: int
    text: str = field(repr=False)


def demo_requests(config: FleetConfig) -> list[Ask]:
    """Every SLO class, streaming and not, then limits of a request's own, then each variant by name."""
    asks = [
        Ask(question=QUESTIONS[(2 * i + stream) % len(QUESTIONS)], slo=name, stream=bool(stream))
        for i, name in enumerate(config.slo_classes)
        for stream in (1, 0)
    ]
    asks.append(Ask(question=QUESTIONS[3], slo={"tpot_ms": 1000.0, "min_quality": 1.0}, stream=True))
    asks += [
        Ask(question=QUESTIONS[0], slo=config.default_class, stream=True, model_suffix=f":{name}")
        for name in config.variants
    ]
    return asks


async def send(client: openai.AsyncOpenAI, model: str, ask: Ask) -> Answer:
    """Sends one request and measures it at the client; TTFT and TPOT exist only for a stream."""
    started = time.monotonic()
    arguments: dict[str, Any] = {
        "model": model + ask.model_suffix,
        "messages": [{"role": "user", "content": ask.question}],
        "max_tokens": ask.max_tokens,
        "temperature": 0.0,
        "extra_body": {"slo": ask.slo},
    }
    if not ask.stream:
        raw = await client.chat.completions.with_raw_response.create(**arguments)
        completion = raw.parse()
        usage = completion.usage
        assert usage is not None
        text = completion.choices[0].message.content or ""
        return _answer(ask, raw.headers, started, None, usage.completion_tokens, text)
    arguments["stream_options"] = {"include_usage": True}
    raw = await client.chat.completions.with_raw_response.create(stream=True, **arguments)
    first: float | None = None
    tokens, text = 0, ""
    async for chunk in raw.parse():
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.monotonic()
            text += chunk.choices[0].delta.content
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
    return _answer(ask, raw.headers, started, first, tokens, text)


def _answer(
    ask: Ask, headers: Mapping[str, str], started: float, first: float | None, tokens: int, text: str
) -> Answer:
    ended = time.monotonic()
    return Answer(
        ask=ask,
        variant=headers["x-quantfleet-variant"],
        reason=headers["x-quantfleet-reason"],
        predicted_ttft_ms=headers["x-quantfleet-predicted-ttft-ms"],
        predicted_tpot_ms=headers["x-quantfleet-predicted-tpot-ms"],
        ttft_ms=(first - started) * 1e3 if first else None,
        tpot_ms=(ended - first) * 1e3 / (tokens - 1) if first and tokens > 1 else None,
        total_s=ended - started,
        tokens=tokens,
        text=text,
    )


async def send_all(base_url: str, model: str, asks: list[Ask], console: Console) -> list[Answer]:
    """Sends the requests two at a time (the machine may have two cores), showing each as it is answered."""
    client = openai.AsyncOpenAI(base_url=base_url, api_key="none-needed-on-loopback", timeout=60.0, max_retries=0)
    two = asyncio.Semaphore(2)

    async def one(ask: Ask) -> Answer:
        async with two:
            answer = await send(client, model, ask)
        console.print(
            f"  [dim]{_class_name(ask)}:[/dim] {ask.question} [cyan]{answer.variant}[/cyan] {answer.tokens} tokens"
        )
        return answer

    async with client:
        return await asyncio.gather(*(one(ask) for ask in asks))


def _class_name(ask: Ask) -> str:
    if ask.model_suffix:
        return f"named{ask.model_suffix}"
    return (
        ask.slo
        if isinstance(ask.slo, str)
        else " ".join(f"{key}={value:g}" if isinstance(value, float) else str(value) for key, value in ask.slo.items())
    )


def print_answers(answers: list[Answer], console: Console) -> None:
    """One line each, and under them the reasons, in the order of the lines."""
    table = Table(title="Online requests (predicted in brackets)", title_justify="left")
    for heading in ("", "asked for", "variant"):
        table.add_column(heading, overflow="fold")
    for heading in ("TTFT ms", "TPOT ms", "tokens", "tok/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, answer in enumerate(answers, 1):
        table.add_row(
            str(number),
            f"{_class_name(answer.ask)}{'' if answer.ask.stream else ', not streamed'}",
            answer.variant,
            f"{_ms(answer.ttft_ms)} ({answer.predicted_ttft_ms})",
            f"{_ms(answer.tpot_ms)} ({answer.predicted_tpot_ms})",
            str(answer.tokens),
            f"{answer.tokens / answer.total_s:.1f}",
        )
    console.print(table)
    console.print("Why:")
    for number, answer in enumerate(answers, 1):
        console.print(f"{number:>3}. {answer.reason}", highlight=False, markup=False)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def fleet_table(state: dict[str, Any]) -> Table:
    """The replicas as /v1/fleet tells them."""
    table = Table(title="The fleet after the requests (/v1/fleet)", title_justify="left")
    for heading in ("variant", "replica", "KV used", "KV free", "cached", "measured / predicted", "RSS MB"):
        table.add_column(heading, justify="left" if heading in ("variant", "replica") else "right")
    for variant in state["variants"]:
        for replica in variant["replicas"]:
            table.add_row(
                variant["name"],
                replica["replica_id"],
                str(replica["kv_tokens_used"]),
                str(replica["kv_tokens_free"]),
                str(replica["kv_tokens_cached"]),
                f"{replica['step_time_ratio']:.2f}",
                f"{replica['rss_bytes'] / 1e6:.0f}",
            )
    return table


def batch_table(report: GenerateReport) -> Table:
    table = Table(title="Batch job", title_justify="left", show_header=False)
    table.add_row("variant", report.variant)
    table.add_row("rows done", f"{report.rows} ({report.errors} with an error of their own)")
    table.add_row("tokens", f"{report.completion_tokens} out, {report.tokens_per_s:.0f} tokens/s")
    table.add_row("batch size", str(report.batch_size))
    table.add_row("why", report.batch_size_reason)
    table.add_row("files", ", ".join(Path(file).name for file in report.files))
    return table


def write_dataset(path: Path, rows: int) -> None:
    """A JSONL dataset of prompts and chats, with ids, and one row that cannot be generated."""
    with path.open("w") as file:
        for i in range(rows):
            question = QUESTIONS[i % len(QUESTIONS)]
            row = {"prompt": question} if i % 2 else {"messages": [{"role": "user", "content": question}]}
            file.write(json.dumps({"id": f"demo-{i:03d}", **row}) + "\n")
        file.write(json.dumps({"id": "demo-bad", "prompt": None}) + "\n")


def run_demo(config: FleetConfig, console: Console, rows: int = 23) -> None:
    """Runs the demo; raises UserError where the machine cannot, RuntimeError where the fleet did not do its job."""
    started = time.monotonic()
    with fleet(config.at(None, 0), console=console) as running:
        console.print("[bold]Online requests[/bold]")
        answers = asyncio.run(send_all(running.base_url, config.model.name, demo_requests(config), console))
        print_answers(answers, console)
        state = httpx.get(f"{running.base_url}/fleet", timeout=10.0).raise_for_status().json()
        console.print(fleet_table(state))
        console.print("[bold]Batch job[/bold]")
        with tempfile.TemporaryDirectory(prefix="quantfleet-demo-") as folder:
            write_dataset(Path(folder) / "questions.jsonl", rows)
            report = run_generate(
                GenerateJob(
                    inputs=(str(Path(folder) / "questions.jsonl"),),
                    output=Path(folder) / "answers",
                    config=config,
                    max_tokens=32,
                    temperature=0.0,
                ),
                console=console,
            )
            console.print(batch_table(report))
    _check(answers, report, rows)
    console.print(f"[green]done[/green] in {time.monotonic() - started:.0f} s; nothing is left running")


def _check(answers: list[Answer], report: GenerateReport, rows: int) -> None:
    """The demo promises: every request answered, two variants chosen by the router itself, every good row done."""
    empty = [answer.ask.question for answer in answers if answer.tokens == 0]
    if empty:
        raise RuntimeError(f"requests without an answer: {empty}")
    chosen = {answer.variant for answer in answers if not answer.ask.model_suffix}
    if len(chosen) < 2:
        raise RuntimeError(f"the router chose only {sorted(chosen)}; the demo expects it to use at least two variants")
    if (report.rows, report.errors) != (rows + 1, 1):
        raise RuntimeError(f"the batch job wrote {report.rows} rows with {report.errors} errors, not {rows + 1} with 1")


def load_config(path: Path | None) -> FleetConfig:
    config = FleetConfig.load(path)
    if len(config.variants) < 2:
        raise UserError(
            f"{path}: variants: the demo needs at least two, it has {len(config.variants)}; run it without a config"
        )
    return config
