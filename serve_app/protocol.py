"""The bodies of OpenAI's two generation endpoints, checked to the type; it knows no model and runs nothing.

A parameter that OpenAI has and quantfleet does not is one of three things: without effect on the answer, then it is
accepted (`user`, `store`, ...); not there yet, then it is refused by name (`tools`, ...); unknown, then it is refused
as OpenAI does, because a misspelt parameter would otherwise be silently without effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from cluster.request import SamplingParams
from serve_app.errors import of_validation

MAX_CHOICES = 128
"""OpenAI's bound on n; here also on prompts x n, because a request is admitted as a whole."""
MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5
MAX_STOP_STRINGS = 16


def _stop(value: Any) -> Any:
    strings = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(text, str) for text in strings):
        raise ValueError("give a string or a list of strings")
    if len(strings) > MAX_STOP_STRINGS:
        raise ValueError(f"{len(strings)} strings, at most {MAX_STOP_STRINGS}")
    if "" in strings:
        raise ValueError("an empty string would stop before the first token")
    return strings


def _logit_bias(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("give an object of token ids and biases")
    biases = {}
    for token, bias in value.items():
        if not str(token).isascii() or not str(token).isdigit():
            raise ValueError(f"{token!r} is not a token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(f"the bias of token {token} is {bias!r}; give a number from -100 to 100")
        biases[int(token)] = float(bias)
    return biases


def _slo(value: Any) -> Any:
    if value is not None and not isinstance(value, str | dict):
        raise ValueError("give a class name or an object of limits")
    return value


def _not_supported(value: Any) -> Any:
    if value not in (None, [], {}):
        raise ValueError("not supported yet")
    return value


def _no_tool(value: Any) -> Any:
    if value not in (None, "none"):
        raise ValueError("tools are not supported yet")
    return value


def _text_only(value: Any) -> Any:
    if value not in (None, {"type": "text"}, ["text"]):
        raise ValueError("only text is supported yet")
    return value


StopStrings = Annotated[list[str], BeforeValidator(_stop)]
LogitBias = Annotated[dict[int, float], BeforeValidator(_logit_bias)]
Refused = Annotated[Any, AfterValidator(_not_supported)]
Count = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


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
    slo: Annotated[str | dict[str, Any] | None, BeforeValidator(_slo)] = None

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


def _content(value: Any) -> Any:
    """A string, or text parts; their texts are joined."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("give a string or a list of text parts")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError('only parts of the form {"type": "text", "text": "..."} are supported')
    return "".join(part["text"] for part in value)


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content)]
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
    tool_choice: Annotated[Any, AfterValidator(_no_tool)] = None
    function_call: Annotated[Any, AfterValidator(_no_tool)] = None
    response_format: Annotated[Any, AfterValidator(_text_only)] = None
    modalities: Annotated[Any, AfterValidator(_text_only)] = None
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


def _prompts(value: Any) -> Any:
    """A text, texts, token ids, or lists of token ids: always a list of prompts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("give a string, a list of strings, token ids, or a list of token id lists, not empty")
    if all(_is_token(item) for item in value):
        return [value]
    if all(isinstance(item, str) for item in value):
        return value
    if all(isinstance(item, list) and item and all(_is_token(token) for token in item) for item in value):
        return value
    raise ValueError("give strings, or token ids, not a mixture; and no empty list")


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts)]
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_COMPLETION_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    suffix: Refused = None
    response_format: Annotated[Any, AfterValidator(_text_only)] = None

    @property
    def echoes(self) -> bool:
        return bool(self.echo)

    @model_validator(mode="after")
    def _choices(self) -> CompletionBody:
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError("'best_of' other than n is not supported yet")
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise ValueError(f"'prompt' x 'n' is {len(self.prompt) * self.n} completions, at most {MAX_CHOICES}")
        return self


def parse(kind: type[Body], body: bytes) -> Body:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise of_validation(error) from None
