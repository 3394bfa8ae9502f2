"""The job: quality of all variants in parallel, then speed one by one on a machine that does nothing else; no files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from batch_jobs.evaluate.answers import ANSWER_TOKENS, agreement
from batch_jobs.evaluate.plan import EvaluateJob, EvaluatePlan, plan_evaluation
from batch_jobs.evaluate.quality import Quality, measure_quality
from batch_jobs.evaluate.report import EvaluateReport, Machine, PromptsReport, TextNote, TextReport, VariantScore
from batch_jobs.evaluate.speed import SPEED_STEPS, Speed, measure_speed, speed_task
from batch_jobs.local_ray import job_ray
from cluster.cpu_host import usable_cores

BUSY_WINDOW_S = 2.0

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_quality(job: EvaluateJob, console: Console | None = None) -> EvaluateReport:
    """What each variant costs in quality; speeds are None."""
    console, started_s = console or Console(quiet=True), time.monotonic()
    plan = plan_evaluation(job)
    with job_ray(), _bars(console) as bars:
        qualities = _qualities(plan, bars)
    return _report(plan, qualities, {}, time.monotonic() - started_s)


def run_evaluate(job: EvaluateJob, console: Console | None = None) -> EvaluateReport:
    """Quality, and then how fast each variant decodes."""
    console, started_s = console or Console(quiet=True), time.monotonic()
    plan = plan_evaluation(job)
    with job_ray(), _bars(console) as bars:
        qualities = _qualities(plan, bars)
        busy_share = psutil.cpu_percent(BUSY_WINDOW_S) / 100
        speeds = _speeds(plan, bars)
    return _report(plan, qualities, speeds, time.monotonic() - started_s, busy_share)


def _qualities(plan: EvaluatePlan, bars: Progress) -> dict[str, Quality]:
    import ray

    at_once = int(ray.cluster_resources().get("GPU", 1)) if plan.on_gpu else plan.at_once()
    tasks, num_gpus = plan.quality_tasks(at_once), 1.0 if plan.on_gpu else 0.0
    sizes = {name: task.num_steps for name, task in tasks.items()}
    return _measured(measure_quality, tasks, "quality", sizes, bars, at_once=at_once, num_gpus=num_gpus)


def _speeds(plan: EvaluatePlan, bars: Progress) -> dict[str, Speed]:
    tasks = {name: speed_task(engine, plan.text.token_ids) for name, engine in plan.engines.items()}
    sizes = dict.fromkeys(tasks, SPEED_STEPS)
    num_gpus = 1.0 if plan.on_gpu else 0.0
    return _measured(measure_speed, tasks, "speed", sizes, bars, at_once=1, num_gpus=num_gpus)


def _measured(
    measure: Callable[[Task], Iterator[Result | None]],
    tasks: Mapping[str, Task],
    what: str,
    sizes: Mapping[str, int],
    bars: Progress,
    **resources: Any,
) -> dict[str, Result]:
    """A bar for each task; the results in the order of the tasks."""
    from batch_jobs.evaluate.ray_streams import run_tasks  # ray

    rows = {name: bars.add_task(f"{what} of {name}", total=sizes[name]) for name in tasks}
    results: dict[str, Result] = {}
    for news in run_tasks(measure, tasks, **resources):
        if news.result is None:
            bars.advance(rows[news.name])
        else:
            results[news.name] = news.result
    return {name: results[name] for name in tasks}


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield progress


def _report(
    plan: EvaluatePlan,
    qualities: Mapping[str, Quality],
    speeds: Mapping[str, Speed],
    seconds: float,
    busy_share: float | None = None,
) -> EvaluateReport:
    text, prompts, engine = plan.text, plan.prompts, plan.engines[plan.reference]
    return EvaluateReport(
        model=plan.job.config.model.name,
        reference=plan.reference,
        variants=tuple(_score(plan, name, qualities, speeds.get(name)) for name in plan.engines),
        text=TextReport(
            name=text.name,
            sha256=text.sha256,
            characters=text.characters,
            tokens=len(text.token_ids),
            scored_tokens=qualities[plan.reference].scored_tokens,
            context=plan.job.context,
            stride=plan.job.step,
        ),
        prompts=PromptsReport(
            name=prompts.name, sha256=prompts.sha256, prompts=len(prompts.prompts), answer_tokens=ANSWER_TOKENS
        ),
        machine=Machine(
            accelerator=engine.cost_model.accelerator.name,
            cores=usable_cores(),
            threads=engine.spec.num_threads,
            busy_share=busy_share,
        ),
        seconds=seconds,
    )


def _score(plan: EvaluatePlan, name: str, qualities: Mapping[str, Quality], speed: Speed | None) -> VariantScore:
    quality, reference, engine = qualities[name], qualities[plan.reference], plan.engines[name]
    agreed, calibration = agreement(reference.answers, quality.answers), plan.calibrations.get(name)
    variant = engine.spec.variant
    return VariantScore(
        name=name,
        method=variant.method,
        source=variant.source,
        calibration=TextNote(name=calibration.name, sha256=calibration.sha256) if calibration else None,
        perplexity=quality.perplexity,
        quality=reference.perplexity / quality.perplexity,
        kl=quality.kl,
        top1_agreement=quality.top1_agreement,
        greedy_agreement=agreed.exact,
        greedy_leading_agreement=agreed.leading,
        weight_bytes=plan.weight_bytes(name),
        read_bytes=engine.cost_model.weights_read_bytes,
        quality_s=quality.seconds,
        tokens_per_s_batch_1=speed.batch_1 if speed else None,
        tokens_per_s_best_batch=speed.best if speed else None,
        best_batch=speed.best_batch if speed else None,
    )
