"""Bodies: what is accepted, and how what is not is told, parameter by parameter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve_app.errors import ApiError
from serve_app.protocol import ChatBody, CompletionBody, GenerationBody, parse

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatBody:
    return parse(ChatBody, json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())


def completion(**fields: Any) -> CompletionBody:
    return parse(CompletionBody, json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": 3}]}, "messages[1].content"),
        ({"model": None}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": "10"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logit_bias": {"abc": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"slo": 5}, "slo"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"max_token": 5}, "max_token"),
    ],
)
def test_a_bad_parameter_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"model": "m", "messages": }',
        b'{"model": "\xff"}',
        b"\xff\xfe",
        b"[" * 10_000,
    ],
)
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(ChatBody, body)
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [{"stream_options": {"include_usage": True}}, {"top_logprobs": 2}])
def test_parameters_that_need_another_say_so(body: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="only allowed when"):
        chat(**body)


@pytest.mark.parametrize(
    "prompt",
    ["", "text", ["a", "b"], [1, 2, 3], [[1, 2], [3]]],
)
def test_every_form_of_a_prompt_is_a_list_of_prompts(prompt: Any) -> None:
    body = completion(prompt=prompt)
    assert isinstance(body.prompt, list)
    assert len(body.prompt) == (2 if prompt in (["a", "b"], [[1, 2], [3]]) else 1)


@pytest.mark.parametrize("prompt", [None, [], [[]], ["a", 1], [1, "a"], [-1], [True], {"text": "a"}, [[1, "a"]]])
def test_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(ApiError) as caught:
        completion(prompt=prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("fields", [{"logprobs": 6}, {"suffix": "x"}, {"best_of": 2}, {"prompt": ["a"] * 65, "n": 2}])
def test_completions_have_limits_of_their_own(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        completion(**fields)
    assert caught.value.status == 400


def test_null_means_not_given() -> None:
    names = ("temperature", "top_p", "max_tokens", "stop", "seed", "logit_bias", "stream", "tools", "user", "slo")
    sampling = chat(**dict.fromkeys(names)).sampling(7, None, None)
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.stop) == (1.0, 1.0, 7, ())


def test_harmless_parameters_of_other_libraries_are_accepted() -> None:
    chat(user="u", metadata={"a": "b"}, store=False, service_tier="auto", parallel_tool_calls=True, tool_choice="none")
    chat(response_format={"type": "text"}, modalities=["text"], tools=[], reasoning_effort="low", temperature=1)


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = chat(messages=[{"role": "developer", "content": parts}, *MESSAGES])
    assert body.messages[0].plain() == {"role": "system", "content": "ab"}


def test_sampling_takes_every_parameter() -> None:
    body = chat(
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": -100},
        stop="x",
        ignore_eos=True,
        min_tokens=3,
        logprobs=True,
        top_logprobs=2,
    )
    sampling = body.sampling(9, body.num_logprobs, 4)
    assert (sampling.top_k, sampling.logit_bias, sampling.stop, sampling.seed) == (0, {5: -100.0}, ("x",), 4)
    assert (sampling.logprobs, sampling.prompt_logprobs, sampling.min_tokens, sampling.ignore_eos) == (2, None, 3, True)


def test_echo_asks_for_the_prompts_log_probabilities() -> None:
    assert completion(echo=True, logprobs=1).sampling(5, 1, None).prompt_logprobs == 1
    assert completion(logprobs=1).sampling(5, 1, None).prompt_logprobs is None


@pytest.mark.parametrize("kind", [ChatBody, CompletionBody])
def test_the_documentation_has_a_schema(kind: type[GenerationBody]) -> None:
    assert "model" in kind.model_json_schema()["properties"]
