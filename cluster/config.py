"""fleet.yaml as FleetConfig: its sections and their limits; it reads files, but starts nothing and detects nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cluster.config_file import DEFAULT_PATH, read_yaml, validated, with_quality, with_variant
from cluster.errors import UserError, did_you_mean
from cluster.model_config import model_config
from cluster.quantization import quantization_of
from cluster.slo import Fallback, Objective, SloClasses, SloLimits
from cluster.variants import Method, Variant

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
NonNegative = Annotated[int, Field(ge=0)]
# A variant's name stands after a colon in a model's name, in headers and in file names.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

PLANNED = ("bits", "group_size")
BUILT_IN = Path(__file__).with_name("default_fleet.yaml")


class Section(BaseModel):
    """A part of fleet.yaml: unknown keys are refused, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=False)


class ModelSection(Section):
    source: Annotated[str, Field(min_length=1)]
    """embedded:smollm2-135m, a Hugging Face id, or a folder."""
    name: Name = ""
    """What clients call it; the source's last part, if not given."""

    @model_validator(mode="before")
    @classmethod
    def _name_from_source(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("source"), str) and not data.get("name"):
            return data | {"name": data["source"].rstrip("/").split("/")[-1].split(":")[-1]}
        return data


class VariantSection(Section):
    method: Method = "none"
    dtype: Literal["bf16", "fp32"] = "bf16"
    source: str | None = None
    head: Literal["same", "int8"] = "same"
    outlier_threshold: PositiveFloat | None = 6.0
    activation_bits: Annotated[int, Field(ge=4, le=12)] = 8
    quality: Annotated[float, Field(gt=0, le=2)] | None = None
    bits: Literal[2, 3, 4, 8] | None = None
    group_size: Literal[32, 64, 128] | None = None
    """Of a gptq or awq checkpoint that is not made yet, to plan with; one that is there says both itself."""

    @field_validator("source")
    @classmethod
    def _folder_from_anywhere(cls, source: str | None) -> str | None:
        """A folder that is there, by its whole path: the processes of a fleet work in folders of their own."""
        folder = Path(source).expanduser() if source is not None else None
        return str(folder.resolve()) if folder is not None and folder.exists() else source

    @model_validator(mode="after")
    def _checkpoint_where_needed(self) -> VariantSection:
        is_told = self.bits is not None and self.group_size is not None
        if self.method in ("gptq", "awq") and self.source is None and not is_told:
            raise ValueError(
                f"method {self.method} reads a checkpoint and none is named; make one with"
                f" `quantfleet quantize SOURCE --method {self.method} -o DIR` and give its folder as `source`"
                " (or `bits` and `group_size`, to plan without one)"
            )
        if (self.bits or self.group_size) and (self.source is not None or self.method not in ("gptq", "awq")):
            raise ValueError(
                "bits and group_size are of a gptq or awq checkpoint that is not there yet; leave them out"
            )
        return self

    def named(self, name: str) -> Variant:
        """Without a method it is what the others are measured against: its quality is 1 unless the file says else."""
        fields = {key: value for key, value in self.model_dump().items() if key not in PLANNED or value is not None}
        if self.method == "none" and self.source is None and self.quality is None:
            fields["quality"] = 1.0
        if self.source is not None:
            fields |= _packing(name, self.method, self.source)
        return Variant(name=name, **fields)


def _packing(name: str, method: Method, source: str) -> dict[str, Any]:
    """What the memory formula needs of a variant's own checkpoint; UserError where that is of another method."""
    key = f"variants.{name}.source"
    found = quantization_of(model_config(source, key), f"{source}/config.json")
    if found is None and method not in ("gptq", "awq"):
        return {}
    if found is None or found.method != method:
        kind = "not quantised" if found is None else found.method
        raise UserError(
            f"variants.{name}.method: {method}, but {source} is {kind};"
            f" say `method: {'none' if found is None else found.method}`, or name another source"
        )
    if method in ("gptq", "awq"):
        return {"bits": found.bits, "group_size": found.group_size, "act_order": found.act_order}
    return {}


class SloSection(Section):
    ttft_ms: PositiveFloat | None = None
    tpot_ms: PositiveFloat | None = None
    objective: Objective = "latency"
    min_quality: Annotated[float, Field(ge=0, le=1)] = 0.0
    fallback: Fallback = "queue"
    deadline_s: PositiveFloat | None = None

    @model_validator(mode="after")
    def _background_without_limits(self) -> SloSection:
        if self.objective == "background" and (self.ttft_ms is not None or self.tpot_ms is not None):
            raise ValueError("a background objective is promised no latency; leave ttft_ms and tpot_ms out")
        return self

    def named(self, name: str) -> SloLimits:
        return SloLimits(name=name, **self.model_dump())


class EngineSection(Section):
    max_context: Annotated[int, Field(ge=16)] = 4096
    block_size: Literal[8, 16, 32, 64, 128] = 16
    memory_utilization: Literal["auto"] | Fraction = "auto"
    """Of the accelerator's memory, for all its replicas together; auto: 0.9 on a GPU, 0.5 on a CPU host."""
    kv_dtype: Literal["auto", "bf16", "fp32"] = "auto"
    kv_capacity_tokens: Literal["auto"] | Positive = "auto"
    """Per replica; auto: what the memory formula leaves."""
    token_budget: Literal["auto"] | Positive = "auto"
    max_sequences: Literal["auto"] | Positive = "auto"
    """Running at once; auto: 64 on a CPU host, 256 on a GPU."""
    max_waiting: NonNegative = 256
    num_threads: Literal["auto"] | Positive = "auto"
    """Of each replica on a CPU host; auto: the cores shared out evenly."""
    prefix_caching: bool = True


class AcceleratorSection(Section):
    name: str = "auto"
    """Detected, or a name of the registry, to plan for hardware one does not have."""
    price_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    resource: Name | None = None
    """Of Ray's nodes that have it, in a cluster that has others too: `ray start --resources '{"NAME": 1}'`."""


class ReplicaBounds(Section):
    min: NonNegative = 1
    max: Positive = 1

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaBounds:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}")
        return self


class Budget(Section):
    gpus: Positive | None = None
    """For all replicas together; None: those of this host."""
    replicas_per_gpu: Literal["auto"] | Positive = "auto"
    """In equal shares of its memory; auto: one, and more only where there are fewer GPUs than replicas."""


class AutoscalingSection(Section):
    enabled: Literal["auto"] | bool = "auto"
    """auto: where a variant's min is below its max; false: every variant keeps its min."""
    budget: Budget = Budget()
    replicas: dict[str, ReplicaBounds] = {}
    headroom: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Of what a fleet could hold, left free when it grows."""
    hysteresis: Annotated[float, Field(ge=0, lt=1)] = 0.10
    """Headroom that a smaller fleet must leave beside the other."""
    swap_gain: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """A growing fleet changes its variants only where that saves so much of its cost."""
    interval_s: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 10.0
    """Between decisions; replicas tell their loads once a second."""
    level_s: PositiveFloat = 30.0
    """Time constant of the smoothed arrival rate."""
    trend_s: PositiveFloat = 120.0
    """Time constant of its slope."""
    hold_s: PositiveFloat = 180.0
    """A fleet shrinks to what the largest rate of so long a time needs."""
    idle_s: PositiveFloat = 300.0
    """Without a request for so long a class, or a variant, needs no replica any more."""
    cold_start_s: Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)] = "auto"
    """From asking for a replica to its being ready; auto: as measured on earlier starts here."""
    log: str | None = "auto"
    """Of every decision, JSON lines for `quantfleet explain`; auto: a file in the cache folder, null: none."""
    dry_run: bool = False
    """Decide and log, and leave the fleet to Ray Serve's own policy (ongoing requests)."""


class HttpSection(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    max_body_bytes: Positive = 4 * 2**20
    max_prompt_tokens: Positive | None = None
    """None: the context is the limit."""

    @property
    def url(self) -> str:
        """For a client on this host."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class AuthSection(Section):
    keys_file: str | None = None
    max_concurrent_requests: Positive = 64
    """Per key; without keys, per server."""
    max_background_requests: Positive = 512
    """The same, of requests of a background objective, which the other limit does not count."""


class BatchesSection(Section):
    """OpenAI's Batch API."""

    folder: str = "auto"
    """Of files, batches and their results, on a disk that all ingresses share; auto: the model's in the cache folder.
    One fleet at a time runs what is in it."""
    max_file_bytes: Positive = 200 * 2**20
    max_stored_bytes: Positive = 10 * 2**30
    """Of one key's files together."""
    max_requests: Positive = 50_000
    """Of one batch."""
    keep_days: Positive = 30
    """Files without an expiry of their own, results, and batches that are over."""
    max_running: Positive = 1
    """Batches at once; others wait."""
    variant: str | None = None
    """Of batches whose requests name the model alone; None: the first of the configuration."""

    @field_validator("folder")
    @classmethod
    def _folder_from_anywhere(cls, folder: str) -> str:
        """By its whole path: the processes of a fleet work in folders of their own."""
        return folder if folder == "auto" else str(Path(folder).expanduser().resolve())


class MetricsSection(Section):
    enabled: bool = True
    """Recorded for Prometheus; docs/metrics.md has the list."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """On this host, of a Ray that `serve` starts; 0 is any that is free, and told at the start. A Ray that is joined
    has its own."""


class LoggingSection(Section):
    """Of ingresses and replicas."""

    format: Literal["text", "json"] = "text"
    """json: an object a line, and one for each request at its end."""
    prompts: bool = False
    """Also the prompt's text, in the line of its request."""
    folder: str | None = None
    """On each node; None: Ray's own, which ends with a Ray that `serve` started."""

    @field_validator("folder")
    @classmethod
    def _folder_from_anywhere(cls, folder: str | None) -> str | None:
        """By its whole path: the processes of a fleet work in folders of their own."""
        return None if folder is None else str(Path(folder).expanduser().resolve())

    @model_validator(mode="after")
    def _prompts_in_json(self) -> LoggingSection:
        if self.prompts and self.format != "json":
            raise ValueError("prompts: true, but format text has no line for a request; say `format: json`, too")
        return self


class TracingSection(Section):
    """OpenTelemetry spans of requests."""

    endpoint: str | None = None
    """Of a collector, OTLP over HTTP, such as http://localhost:4318; None: no spans are made."""
    sample: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the requests whose client has not decided it (traceparent)."""

    @field_validator("endpoint")
    @classmethod
    def _http_address(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not re.match(r"https?://[^\s/]+\S*$", endpoint):
            raise ValueError(f"{endpoint!r} is no http address; a collector's is http://localhost:4318")
        return endpoint


class FleetConfig(Section):
    """The one configuration; every key has a default but model.source."""

    model: ModelSection
    variant_sections: Annotated[dict[Name, VariantSection], Field(alias="variants", min_length=1)]
    slo_sections: Annotated[dict[Name, SloSection], Field(alias="slo_classes", min_length=1)]
    default_class: str
    """The class of requests that name none."""
    engine: EngineSection = EngineSection()
    accelerator: AcceleratorSection = AcceleratorSection()
    autoscaling: AutoscalingSection = AutoscalingSection()
    http: HttpSection = HttpSection()
    auth: AuthSection = AuthSection()
    batches: BatchesSection = BatchesSection()
    metrics: MetricsSection = MetricsSection()
    logging: LoggingSection = LoggingSection()
    tracing: TracingSection = TracingSection()

    @classmethod
    def load(cls, path: str | Path | None = None) -> FleetConfig:
        """The file named; without a name ./fleet.yaml, and where there is none the built-in default."""
        if path is None and not DEFAULT_PATH.exists():
            return cls.built_in()
        file = Path(path) if path is not None else DEFAULT_PATH
        return cls.of(read_yaml(file), file.name)

    @classmethod
    def built_in(cls) -> FleetConfig:
        return cls.of(read_yaml(BUILT_IN), BUILT_IN.name)

    @classmethod
    def of(cls, data: Mapping[str, Any], file_name: str = "fleet.yaml") -> FleetConfig:
        """From a file's contents; variants and classes that it leaves out are the built-in ones."""
        return validated(cls, _with_defaults(data), file_name)

    def at(self, host: str | None, port: int | None) -> FleetConfig:
        """The same fleet on another address, checked again: what is not loopback needs keys."""
        http = self.http.model_dump() | {
            "host": host or self.http.host,
            "port": self.http.port if port is None else port,
        }
        return validated(
            FleetConfig, self.model_dump(by_alias=True, exclude_unset=True) | {"http": http}, "--host, --port"
        )

    @field_validator("accelerator", mode="before")
    @classmethod
    def _accelerator_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> FleetConfig:
        if self.default_class not in self.slo_sections:
            raise ValueError(
                f"default_class: no class {self.default_class!r}; {did_you_mean(self.default_class, self.slo_sections)}"
            )
        variant = self.batches.variant
        if variant is not None and variant not in self.variant_sections:
            raise ValueError(f"batches.variant: no variant {variant!r}; {did_you_mean(variant, self.variant_sections)}")
        if self.slo_classes[self.default_class].is_background:
            raise ValueError(
                f"default_class: {self.default_class!r} is of a background objective, and most requests name no class"
            )
        for name in self.autoscaling.replicas:
            if name not in self.variant_sections:
                raise ValueError(
                    f"autoscaling.replicas.{name}: no such variant; {did_you_mean(name, self.variant_sections)}"
                )
        if self.autoscaling.enabled is True and not self._has_room:
            raise ValueError(
                "autoscaling.enabled: true, but no variant has a min below its max;"
                f" give one room, for example replicas: {{{next(iter(self.variant_sections))}: {{min: 1, max: 2}}}}"
            )
        if self.auth.keys_file is None and not self.http.is_loopback:
            raise ValueError(
                f"auth.keys_file: required, because http.host {self.http.host} is not loopback; "
                "make one with `quantfleet keys create` or serve on 127.0.0.1"
            )
        return self

    @property
    def variants(self) -> dict[str, Variant]:
        return {name: section.named(name) for name, section in self.variant_sections.items()}

    @property
    def slo_classes(self) -> dict[str, SloLimits]:
        return {name: section.named(name) for name, section in self.slo_sections.items()}

    @property
    def online_classes(self) -> dict[str, SloLimits]:
        """All but those of a background objective, for whom no fleet is sized."""
        return {name: limits for name, limits in self.slo_classes.items() if not limits.is_background}

    @property
    def slo(self) -> SloClasses:
        return SloClasses(classes=self.slo_classes, default=self.default_class)

    def replicas(self, variant: str) -> ReplicaBounds:
        return self.autoscaling.replicas.get(variant, ReplicaBounds())

    @property
    def is_autoscaled(self) -> bool:
        """Whether the number of replicas changes while the fleet runs."""
        return self.autoscaling.enabled is not False and self._has_room

    @property
    def _has_room(self) -> bool:
        return any(self.replicas(name).min < self.replicas(name).max for name in self.variant_sections)

    def fixed(self) -> FleetConfig:
        """The same fleet with every variant at its min."""
        section = self.autoscaling.model_dump(exclude_unset=True) | {"enabled": False}
        return FleetConfig.of(self.model_dump(by_alias=True, exclude_unset=True) | {"autoscaling": section})


def register_quality(
    path: str | Path | None, variant: str, quality: float, section: Mapping[str, Any] | None = None
) -> Path:
    """Write a variant's measured quality into fleet.yaml, comments kept; without one, into a copy of the built-in.

    `section` is what to add for a variant that the file does not have: the method and the source of a checkpoint.
    """
    file = Path(path) if path is not None else DEFAULT_PATH
    text = file.read_text(encoding="utf-8") if file.exists() else BUILT_IN.read_text(encoding="utf-8")
    if file.exists() and "variants" not in read_yaml(file):
        variants = _built_in_for(read_yaml(file))["variants"]
        text = f"{text.rstrip()}\n\n{yaml.safe_dump({'variants': variants}, sort_keys=False)}"
    known = FleetConfig.of(yaml.safe_load(text), file.name).variants
    if variant not in known and section is not None:
        text = with_variant(text, variant, section)
    elif variant not in known:
        raise UserError(f"{file.name}: variants.{variant}: no such variant; {did_you_mean(variant, known)}")
    text = with_quality(text, variant, quality)
    FleetConfig.of(yaml.safe_load(text), file.name)
    # A link stays a link, and a full disk leaves the old file.
    target = file.resolve()
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return file


def _built_in_for(data: Mapping[str, Any]) -> dict[str, Any]:
    """The built-in file; its qualities are the embedded model's: those of another model have yet to be measured."""
    built_in = read_yaml(BUILT_IN)
    model = data.get("model")
    if not isinstance(model, dict) or model.get("source") != built_in["model"]["source"]:
        for section in built_in["variants"].values():
            section.pop("quality", None)
    return built_in


def _with_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    built_in = _built_in_for(data)
    merged = {key: data.get(key, built_in[key]) for key in ("variants", "slo_classes")}
    classes = merged["slo_classes"]
    if "default_class" not in data and isinstance(classes, dict) and classes:
        merged["default_class"] = "standard" if "standard" in classes else next(iter(classes))
    return {**data, **merged}
