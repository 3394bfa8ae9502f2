"""What an evaluation will measure, on what and with how much at once; every mistake is told here, before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from batch_jobs.engine_choice import EngineChoice, choose_engine
from batch_jobs.evaluate.answers import ANSWER_TOKENS, ANSWERS_AT_ONCE
from batch_jobs.evaluate.candidates import Candidates, find_candidates
from batch_jobs.evaluate.evaluation_text import Calibration, EvaluationText, read_calibration, read_text, refuse_overlap
from batch_jobs.evaluate.prompt_set import PromptSet, read_prompts
from batch_jobs.evaluate.quality import QualityTask
from batch_jobs.perplexity import windows
from batch_jobs.prompts import PromptEncoder
from cluster.config import FleetConfig
from cluster.cpu_host import usable_cores, usable_memory_bytes
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from engine.text import TextCodec

PROCESS_BYTES = 600 * 10**6
"""Of a process before its models: the interpreter, torch, Ray, and pieces of logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateJob:
    config: FleetConfig
    variants: tuple[str, ...]
    """Names of the configuration, or checkpoint folders."""
    text: Path
    prompts: Path | None = None
    """None: the 16 that ship."""
    context: int = 512
    stride: int | None = None
    """None: the context, so that windows are disjoint."""
    max_tokens: int | None = 20480
    """Of the text, from its start; None: all of it."""

    def __post_init__(self) -> None:
        if self.context < 2:
            raise UserError(f"--context {self.context}: a window has 2 tokens at least")
        if not 1 <= self.step <= self.context:
            raise UserError(f"--stride {self.step}: must lie between 1 and the context, {self.context}")
        if self.max_tokens is not None and self.max_tokens < self.context:
            raise UserError(f"--max-tokens {self.max_tokens}: less than one window of --context {self.context}")

    @property
    def step(self) -> int:
        return self.context if self.stride is None else self.stride


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatePlan:
    job: EvaluateJob
    candidates: Candidates
    engines: Mapping[str, EngineChoice]
    """By variant, the reference first."""
    text: EvaluationText
    prompts: PromptSet
    calibrations: Mapping[str, Calibration]
    """Of the variants whose checkpoints name one."""

    @property
    def reference(self) -> str:
        return self.candidates.names[0]

    @property
    def on_gpu(self) -> bool:
        return self.engines[self.reference].spec.device == "cuda"

    def weight_bytes(self, name: str) -> int:
        """Resident: what a replica holds."""
        model = self.engines[name].cost_model
        return model.variant.resident_bytes(model.shape, model.accelerator.kind)

    def at_once(self) -> int:
        """Quality tasks side by side on a CPU host: as many as cores, and as memory has room for."""
        return max(1, min(usable_cores(), len(self.engines), _free_bytes() // max(self._task_bytes().values())))

    def quality_tasks(self, at_once: int) -> dict[str, QualityTask]:
        """The cores of a CPU host shared out evenly among those that run side by side."""
        threads = 1 if self.on_gpu else max(1, usable_cores() // at_once)
        specs = {name: self._scoring_spec(name, threads) for name in self.engines}
        pieces = list(windows(len(self.text.token_ids), self.job.context, self.job.step))
        return {
            name: QualityTask(
                spec=spec,
                reference=None if name == self.reference else specs[self.reference],
                token_ids=self.text.token_ids,
                windows=pieces,
                prompts=self.prompts.prompts,
            )
            for name, spec in specs.items()
        }

    def check_memory(self) -> None:
        """A variant is loaded beside the reference, which serving never asks for."""
        accelerator = self.engines[self.reference].cost_model.accelerator
        free = accelerator.memory_bytes if self.on_gpu else _free_bytes()
        for name, needed in self._task_bytes().items():
            if needed > free:
                beside = "" if name == self.reference else f" beside {self.reference}"
                raise UserError(
                    f"{name}: measured{beside} it takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are there;"
                    " evaluate on a host or a GPU with more memory"
                )

    def _scoring_spec(self, name: str, threads: int) -> EngineSpec:
        """Room for a window, and for as many answers as are generated at once; equal for all but the variant."""
        reference, longest = self.engines[self.reference].spec, self.prompts.longest + ANSWER_TOKENS
        answers = min(ANSWERS_AT_ONCE, len(self.prompts.prompts)) * -(-longest // reference.block_size)
        blocks = max(-(-self.job.context // reference.block_size), answers)
        return replace(
            self.engines[name].spec,
            max_context=max(self.job.context, longest),
            kv_capacity_tokens=blocks * reference.block_size,
            token_budget=max(reference.token_budget, ANSWERS_AT_ONCE),
            max_sequences=ANSWERS_AT_ONCE,
            num_threads=threads,
            prefix_caching=False,
            memory_bytes=None,
        )

    def _task_bytes(self) -> dict[str, int]:
        def model_bytes(name: str) -> int:
            spec = self._scoring_spec(name, threads=1)
            kv_bytes = self.engines[name].cost_model.kv_bytes_per_token * spec.kv_capacity_tokens
            return self.weight_bytes(name) + kv_bytes

        beside = {name: 0 if name == self.reference else model_bytes(self.reference) for name in self.engines}
        return {name: PROCESS_BYTES + model_bytes(name) + beside[name] for name in self.engines}


def plan_evaluation(job: EvaluateJob) -> EvaluatePlan:
    candidates = find_candidates(job.config, job.variants)
    engines = {name: choose_engine(candidates.config, name) for name in candidates.names}
    reference = engines[candidates.names[0]]
    positions = reference.cost_model.shape.max_positions
    if job.context > positions:
        raise UserError(f"--context {job.context}: {job.config.model.name} has positions for {positions} tokens")
    codec = TextCodec(reference.spec.checkpoint)
    text = read_text(job.text, codec, job.max_tokens)
    if len(text.token_ids) < job.context:
        raise UserError(
            f"--text {job.text}: has {len(text.token_ids)} tokens, less than one window of --context {job.context};"
            " give a longer text, or a smaller context"
        )
    calibrations = _calibrations(engines)
    for name, calibration in calibrations.items():
        refuse_overlap(text, codec, calibration, _checkpoint(engines[name]))
    encoder = PromptEncoder(checkpoint=reference.spec.checkpoint, max_prompt_tokens=positions - ANSWER_TOKENS)
    plan = EvaluatePlan(
        job=job,
        candidates=candidates,
        engines=engines,
        text=text,
        prompts=read_prompts(job.prompts, encoder),
        calibrations=calibrations,
    )
    plan.check_memory()
    return plan


def _calibrations(engines: Mapping[str, EngineChoice]) -> dict[str, Calibration]:
    found = {
        name: read_calibration(_checkpoint(engine)) for name, engine in engines.items() if engine.spec.variant.source
    }
    return {name: calibration for name, calibration in found.items() if calibration is not None}


def _checkpoint(engine: EngineChoice) -> Path:
    """A variant's own."""
    return Path(engine.spec.variant.source or engine.spec.checkpoint).expanduser()


def _free_bytes() -> int:
    """A container's limit, or what the host's other processes leave."""
    return min(usable_memory_bytes(), psutil.virtual_memory().available)
