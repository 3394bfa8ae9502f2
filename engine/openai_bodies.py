"""The bodies of OpenAI's two generation endpoints, checked to the type; it knows no model and runs nothing.

A parameter that OpenAI has and quantfleet does not is one of three things: without effect on the answer, then it is
accepted (`user`, `store`, ...); not there yet, then it is refused by name (`tools`, ...); unknown, then it is refused
as OpenAI does, because a misspelt parameter would otherwise be silently without effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.request import SamplingParams
from engine.openai_parameters import (
    Content,
    Count,
    LogitBias,
    Penalty,
    Prompts,
    Refused,
    Slo,
    StopStrings,
    TextFormat,
    ToolChoice,
)

MAX_CHOICES = 128
"""OpenAI's bound on n; here also on prompts x n, because a request is admitted as a whole."""
MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False
    """Accepted and without effect: no padding is added."""


class GenerationBody(Strict):
    """What both endpoints take."""

    model: str
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: StopStrings = []
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias = {}

    # Extensions, named as vLLM names them.
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """0 and -1 keep every token."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False
    slo: Slo = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    """The smaller runs first, before everything else that decides (cluster/rank.py)."""

    # Without effect on an answer.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' is only allowed when 'stream' is true")
        return self

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wanted_tokens(self) -> int | None:
        """The client's bound on the answer."""
        return self.max_tokens

    @property
    def echoes(self) -> bool:
        """Whether the answer begins with the prompt."""
        return False

    def sampling(self, max_tokens: int, logprobs: int | None, seed: int | None) -> SamplingParams:
        """Defaults are OpenAI's: temperature 1 and no truncation, whatever the model's generation_config says."""
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=self.logit_bias,
            seed=seed,
            stop=tuple(self.stop),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            prompt_logprobs=logprobs if self.echoes else None,
        )


Body = TypeVar("Body", bound=GenerationBody)


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None
    refusal: str | None = None
    annotations: Any = None
    audio: Refused = None
    tool_calls: Refused = None
    function_call: Refused = None

    def plain(self) -> dict[str, str]:
        """As chat templates know it: `developer` is OpenAI's newer word for `system`."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Refused = None
    functions: Refused = None
    tool_choice: ToolChoice = None
    function_call: ToolChoice = None
    response_format: TextFormat = None
    modalities: TextFormat = None
    audio: Refused = None
    prediction: Refused = None
    web_search_options: Refused = None
    parallel_tool_calls: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' is only allowed when 'logprobs' is true")
        return self

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Prompts
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    return_token_ids: bool = False
    """vLLM's name. Then logprobs may be as many as a chat's, and come by token id too: `token_logprobs`."""
    best_of: Annotated[int, Field(ge=1)] | None = None
    suffix: Refused = None
    response_format: TextFormat = None

    @property
    def echoes(self) -> bool:
        return bool(self.echo)

    @model_validator(mode="after")
    def _choices(self) -> CompletionBody:
        if (self.logprobs or 0) > MAX_COMPLETION_LOGPROBS and not self.return_token_ids:
            raise ValueError(f"'logprobs' is {self.logprobs}, at most {MAX_COMPLETION_LOGPROBS}")
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError("'best_of' other than n is not supported yet")
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise ValueError(f"'prompt' x 'n' is {len(self.prompt) * self.n} completions, at most {MAX_CHOICES}")
        return self
