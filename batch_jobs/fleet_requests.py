"""A row as a request of POST /v1/completions, and its answer as tokens again; it sends nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.request import FinishReason, GenerationRequest, SamplingParams, TokenLogprob

LEAST_TOP_P = 1e-9
"""OpenAI's top_p is above 0; the likeliest token alone has more than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRow:
    token_ids: list[int]
    logprobs: list[TokenLogprob]
    finish_reason: FinishReason


def request_body(request: GenerationRequest, model: str) -> dict[str, Any]:
    """Of POST /v1/completions: the prompt in tokens, the sampling, and that it is background work."""
    sampling = request.sampling
    return {
        "model": model,
        "slo": "background",
        "prompt": request.prompt_token_ids,
        "return_token_ids": True,
        **_sampling_fields(sampling),
    }


def _sampling_fields(sampling: SamplingParams) -> dict[str, Any]:
    names = ("max_tokens", "min_tokens", "temperature", "top_k", "min_p", "repetition_penalty", "presence_penalty")
    fields = {name: getattr(sampling, name) for name in (*names, "frequency_penalty", "seed", "ignore_eos", "logprobs")}
    biases = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return fields | {"top_p": max(sampling.top_p, LEAST_TOP_P), "stop": list(sampling.stop), "logit_bias": biases}


def finished_row(answer: Mapping[str, Any]) -> FinishedRow:
    """Of the answer to such a request."""
    (choice,) = answer["choices"]
    return FinishedRow(
        token_ids=choice["token_ids"],
        logprobs=[_logprob(each) for each in choice["token_logprobs"]],
        finish_reason=choice["finish_reason"],
    )


def _logprob(value: dict[str, Any]) -> TokenLogprob:
    top = [(token_id, logprob) for token_id, logprob in value["top"]]
    return TokenLogprob(token_id=value["token_id"], logprob=value["logprob"], top=top)
