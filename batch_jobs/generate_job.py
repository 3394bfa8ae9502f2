"""What a generation job is asked for, and all that can be found out before anything of it runs; it starts nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from batch_jobs.engine_choice import EngineChoice, choose_engine
from batch_jobs.fingerprint import Fingerprint, code_digest, files_digest
from batch_jobs.generator import sequence_limit
from batch_jobs.input_files import InputFile, InputFormat, find_input_files
from batch_jobs.openai_requests import RequestRules
from batch_jobs.prompts import PromptEncoder
from batch_jobs.reading import Columns, limited
from batch_jobs.writing import FileFormat
from cluster.config import FleetConfig
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.request import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateJob:
    """What a user asks for."""

    inputs: tuple[str, ...]
    """Files, folders, glob patterns, URIs of them."""
    output: Path
    config: FleetConfig
    variant: str | None = None
    """None: the first of the configuration."""
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    columns: Columns = field(default_factory=Columns)
    split: str | None = None
    """Of a Hugging Face DatasetDict."""
    input_format: InputFormat = "auto"
    limit: int | None = None
    raw: bool = False
    system: str | None = None
    format: FileFormat = "jsonl"
    rows_per_file: int = 1000
    num_engines: int = 1
    batch_size: int | None = None
    """None: by the cost model, and by a probe where the job is long."""
    new_run: bool = False
    """Sets aside what an earlier run left, whatever it was."""

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("max-tokens", self.max_tokens, 1, 2**31 - 1),
            ("temperature", self.temperature, 0, 2),
            ("top-p", self.top_p, 0, 1),
            ("seed", self.seed, 0, 2**63 - 1),
            ("limit", self.limit, 1, 2**63 - 1),
            ("engines", self.num_engines, 1, 4096),
            ("batch-size", self.batch_size, 1, 4096),
            ("rows-per-file", self.rows_per_file, 1, 2**31 - 1),
        ):
            if value is not None and not least <= value <= most:
                raise UserError(f"--{name} {value}: must lie between {least} and {most}")

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed, stop=self.stop
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedJob:
    """The job with all that could be found out before anything runs."""

    job: GenerateJob
    files: list[InputFile]
    engine: EngineChoice
    encoder: PromptEncoder
    fingerprint: Fingerprint

    @property
    def price_per_s(self) -> float:
        """Of all engines."""
        return self.job.num_engines * self.engine.cost_model.price_per_s


def prepare(job: GenerateJob) -> PreparedJob:
    found = find_input_files(job.inputs, split=job.split, input_format=job.input_format)
    _check_template(job, found)
    files = limited(found, job.columns, job.limit)
    engine = choose_engine(job.config, job.variant)
    encoder = PromptEncoder(
        checkpoint=engine.spec.checkpoint,
        max_prompt_tokens=sequence_limit(engine.spec) - 1,
        raw=job.raw,
        system=job.system,
        requests=_request_rules(job, files, engine.spec.variant.name),
    )
    return PreparedJob(
        job=job, files=files, engine=engine, encoder=encoder, fingerprint=_fingerprint(job, files, engine.spec)
    )


def _check_template(job: GenerateJob, files: list[InputFile]) -> None:
    batch = next((file for file in files if file.kind == "openai-batch"), None)
    if job.columns.template is not None and batch is not None:
        raise UserError(f"--template: {batch.name} is of OpenAI's Batch format, whose lines bring their prompts")


def _request_rules(job: GenerateJob, files: list[InputFile], variant: str) -> RequestRules | None:
    if job.format != "openai-batch" and not any(file.kind == "openai-batch" for file in files):
        return None
    return RequestRules(model=job.config.model.name, variant=variant, max_tokens=job.max_tokens, system=job.system)


def _fingerprint(job: GenerateJob, files: list[InputFile], spec: EngineSpec) -> Fingerprint:
    """How fast and in how many pieces is not in it: that may change from one run to the next."""
    variant = {name: value for name, value in asdict(spec.variant).items() if name != "quality"}
    weights = {name: files_digest(Path(folder)) for name, folder in _weight_folders(spec).items()}
    return Fingerprint(
        settings={
            "model": {"name": job.config.model.name, **weights},
            "variant": variant,
            "engine": {"max_context": sequence_limit(spec), "kv_dtype": spec.kv_dtype, "device": spec.device},
            "prompt": {"raw": job.raw, "system": job.system, **asdict(job.columns)},
            "sampling": asdict(job.sampling),
            "inputs": {file.name: f"{file.kind}, {_state_of(file)}" for file in files},
            "format": job.format,
            "code": code_digest(),
        }
    )


def _weight_folders(spec: EngineSpec) -> dict[str, str]:
    return {"checkpoint": spec.checkpoint} | ({"weights": spec.variant.source} if spec.variant.source else {})


def _state_of(file: InputFile) -> str:
    """Rows are found again by where they stand, so the file must be the same one."""
    return file.source.state + ("" if file.end is None else f", read to {file.end}")
