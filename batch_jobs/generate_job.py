"""What a generation job is asked for, and all that can be found out before anything of it runs; it starts nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from batch_jobs.batch_tuner import sample_head
from batch_jobs.engine_choice import EngineChoice
from batch_jobs.engine_identity import engine_settings, sequence_limit
from batch_jobs.fingerprint import Fingerprint
from batch_jobs.input_files import InputFile, InputFormat, approximate_rows, find_input_files
from batch_jobs.job_engines import engines_of
from batch_jobs.job_manifest import Manifest
from batch_jobs.openai_requests import RequestRules
from batch_jobs.prompts import PromptEncoder
from batch_jobs.reading import Columns, limited
from batch_jobs.variant_choice import AUTO, VariantChoice, check_quality, choose_variant
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
    """None: the first of the configuration, or of the fleet; variant_choice.AUTO: the cheapest of min_quality."""
    min_quality: float = 0.0
    """Of the variant, as cluster.slo.meets_floor has it."""
    share_fleet: str | None = None
    """The address of a serving fleet: what is idle there runs the rows, and no engine is started."""
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
            ("min-quality", self.min_quality, 0, 1),
        ):
            if value is not None and not least <= value <= most:
                raise UserError(f"--{name} {value}: must lie between {least} and {most}")
        if self.share_fleet is not None and self.num_engines != 1:
            raise UserError(
                f"--engines {self.num_engines}: with --share-fleet the engines are the fleet's; leave it out"
            )

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
    variant_choice: str | None = None
    """Why this variant, where none was named."""

    @property
    def price_per_s(self) -> float:
        """Of all engines."""
        return self.job.num_engines * self.engine.price_per_s


def prepare(job: GenerateJob) -> PreparedJob:
    found = find_input_files(job.inputs, split=job.split, input_format=job.input_format)
    _check_template(job, found)
    files = limited(found, job.columns, job.limit)
    engines = engines_of(job.config, job.variant, job.share_fleet)
    choice = _chosen(job, files, engines) if job.variant == AUTO else VariantChoice(engine=engines[0])
    engine = choice.engine
    check_quality(engine, job.min_quality)
    return PreparedJob(
        job=job,
        files=files,
        engine=engine,
        encoder=_encoder(job, files, engine.spec),
        fingerprint=_fingerprint(job, files, engine),
        variant_choice=choice.arithmetic,
    )


def _chosen(job: GenerateJob, files: list[InputFile], engines: list[EngineChoice]) -> VariantChoice:
    """As the job in the output folder began, else by what its rows are like."""
    begun = Manifest.read(job.output)
    if begun is not None:
        name = begun.settings.variant
        engine = next((each for each in engines if each.spec.variant.name == name), None)
        if engine is None:
            raise UserError(f"{job.output}: its job began with {name}, which there is no engine of now; or --new-run")
        return VariantChoice(engine=engine, arithmetic=begun.settings.variant_choice)
    sample = sample_head(files, job.columns, _encoder(job, files, engines[0].spec))
    num_rows = sum(approximate_rows(file) for file in files)
    return choose_variant(engines, sample, sample.output_tokens(job.max_tokens), max(1, num_rows), job.min_quality)


def _encoder(job: GenerateJob, files: list[InputFile], spec: EngineSpec) -> PromptEncoder:
    return PromptEncoder(
        checkpoint=spec.checkpoint,
        max_prompt_tokens=sequence_limit(spec) - 1,
        raw=job.raw,
        system=job.system,
        requests=_request_rules(job, files, spec.variant.name),
    )


def _check_template(job: GenerateJob, files: list[InputFile]) -> None:
    batch = next((file for file in files if file.kind == "openai-batch"), None)
    if job.columns.template is not None and batch is not None:
        raise UserError(f"--template: {batch.name} is of OpenAI's Batch format, whose lines bring their prompts")


def _request_rules(job: GenerateJob, files: list[InputFile], variant: str) -> RequestRules | None:
    if job.format != "openai-batch" and not any(file.kind == "openai-batch" for file in files):
        return None
    return RequestRules(model=job.config.model.name, variant=variant, max_tokens=job.max_tokens, system=job.system)


def _fingerprint(job: GenerateJob, files: list[InputFile], engine: EngineChoice) -> Fingerprint:
    """How fast and in how many pieces is not in it: that may change from one run to the next."""
    share = engine.share
    return Fingerprint(
        settings={
            **(engine_settings(job.config.model.name, engine.spec) if share is None else share.served.settings),
            "prompt": {"raw": job.raw, "system": job.system, **asdict(job.columns)},
            "sampling": asdict(job.sampling),
            "inputs": {file.name: f"{file.kind}, {_state_of(file)}" for file in files},
            "format": job.format,
        }
    )


def _state_of(file: InputFile) -> str:
    """Rows are found again by where they stand, so the file must be the same one."""
    return file.source.state + ("" if file.end is None else f", read to {file.end}")
