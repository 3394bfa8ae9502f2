"""Lines of a batch become what the HTTP API would make of them, or the error that it would answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from batch_jobs.openai_lines import CHAT_URL, COMPLETION_URL, BatchLine
from batch_jobs.openai_requests import RequestRules, RowRequest
from batch_jobs.prompts import EncodedRow, PromptEncoder
from batch_jobs.reading import InputRow
from cluster.request import SamplingParams
from engine.text import TextCodec

CONTEXT = 60
CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "developer", "content": "Brief."}, {"role": "user", "content": "Hi"}],
}
COMPLETION: dict[str, Any] = {"model": "m:int8", "prompt": "The sky is"}


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> PromptEncoder:
    rules = RequestRules(model="m", variant="int8", max_tokens=7, system=None)
    return PromptEncoder(checkpoint=str(checkpoint), max_prompt_tokens=CONTEXT - 1, requests=rules)


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> TextCodec:
    return TextCodec(checkpoint)


def encoded(encoder: PromptEncoder, body: dict[str, Any]) -> tuple[EncodedRow, RowRequest]:
    url = CHAT_URL if "messages" in body else COMPLETION_URL
    row = encoder.encode(InputRow(id="a", request=BatchLine(url=url, body=json.dumps(body)).encoded()))
    return row, RowRequest.decoded(row.request or "")


def test_a_line_brings_its_own_sampling(encoder: PromptEncoder, codec: TextCodec) -> None:
    own = {
        "max_completion_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": "x",
        "logit_bias": {"5": 1.5},
        "logprobs": True,
        "top_logprobs": 2,
        "user": "u",
    }
    row, request = encoded(encoder, CHAT | own)
    messages = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Hi"}]
    assert (row.token_ids, json.loads(row.prompt)) == (codec.encode_chat(messages), messages)
    assert (request.url, request.model) == (CHAT_URL, "m")
    assert request.sampling == SamplingParams(
        max_tokens=5, temperature=0.5, top_p=0.9, seed=3, stop=("x",), logit_bias={5: 1.5}, logprobs=2
    )


def test_what_a_line_leaves_out_is_openais_default(encoder: PromptEncoder, codec: TextCodec) -> None:
    row, request = encoded(encoder, COMPLETION)
    assert (row.prompt, row.token_ids) == ("The sky is", codec.encode("The sky is"))
    assert request.sampling == SamplingParams(max_tokens=7, temperature=1.0)
    ids = codec.encode("The sky is")
    row, _ = encoded(encoder, COMPLETION | {"prompt": ids})
    assert (row.prompt, row.token_ids) == ("The sky is", ids)
    _, request = encoded(encoder, COMPLETION | {"prompt": [5] * (CONTEXT - 3), "max_tokens": None})
    assert request.sampling == SamplingParams(max_tokens=3, temperature=1.0)


@pytest.mark.parametrize(
    ("body", "status", "param", "code", "error"),
    [
        (CHAT | {"model": "other"}, 404, "model", "model_not_found", "The model 'other' does not exist"),
        (CHAT | {"model": "m:bf16"}, 404, "model", "model_not_found", "known: m, m:int8"),
        (CHAT | {"temprature": 1}, 400, "temprature", "unknown_parameter", "Unrecognized request argument"),
        ({"messages": CHAT["messages"]}, 400, "model", "missing_required_parameter", "Missing required"),
        (CHAT | {"tools": [{}]}, 400, "tools", None, "not supported yet"),
        (CHAT | {"messages": [{"role": "user"}]}, 400, "messages[0].content", "missing_required_parameter", "Missing"),
        (CHAT | {"n": 2}, 400, "n", None, "2 choices; a line of a batch has one"),
        (CHAT | {"stream": True}, 400, "stream", None, "does not stream"),
        (CHAT | {"max_tokens": CONTEXT}, 400, "max_tokens", "context_length_exceeded", "maximum context length is 60"),
        (CHAT | {"min_tokens": 9, "max_tokens": 8}, 400, "min_tokens", None, "9 is more than max_tokens, 8"),
        (CHAT | {"logit_bias": {"999999": 1}}, 400, "logit_bias", None, "outside the vocabulary"),
        (COMPLETION | {"prompt": ["a", "b"]}, 400, "prompt", None, "2 prompts"),
        (COMPLETION | {"prompt": ""}, 400, "prompt", None, "holds no tokens"),
        (COMPLETION | {"prompt": "x " * CONTEXT}, 400, "prompt", "context_length_exceeded", "your prompt has"),
        (COMPLETION | {"echo": True}, 400, "echo", None, "not supported in a batch yet"),
    ],
)
def test_what_cannot_run_is_an_error_of_its_row(
    encoder: PromptEncoder, body: dict[str, Any], status: int, param: str, code: str | None, error: str
) -> None:
    row, request = encoded(encoder, body)
    assert error in (row.error or "")
    assert (request.status, request.param, request.code, row.token_ids) == (status, param, code, [])


def test_rows_of_other_formats_say_how_they_are_answered(encoder: PromptEncoder) -> None:
    chat = encoder.encode(InputRow(id="a", prompt="Hi"))
    assert RowRequest.decoded(chat.request or "") == RowRequest(url=CHAT_URL, model="m")
    bad = encoder.encode(InputRow(id="a", error="malformed"))
    assert RowRequest.decoded(bad.request or "") == RowRequest(status=400)
