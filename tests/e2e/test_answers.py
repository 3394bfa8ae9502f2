"""What the fleet answers, through the official client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import psutil
import pytest

pytestmark = pytest.mark.ray

MODEL = "smollm2-135m"
ASK: Any = [{"role": "user", "content": "What is the capital of France?"}]


def test_models_and_health(fleet: Any, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, *(f"{MODEL}:{v}" for v in ("bf16", "int8", "nf4"))]
    assert fleet.get("/healthz").json() == {"status": "ok"}


def test_its_engines_come_behind_nobody(fleet: Any) -> None:
    assert {process.nice() for process in fleet.engines().values()} == {psutil.Process().nice()}


@pytest.mark.parametrize("variant", ["bf16", "int8", "nf4"])
def test_a_chat_whole_and_streamed_says_the_same(client: openai.OpenAI, variant: str) -> None:
    arguments: Any = {"model": f"{MODEL}:{variant}", "messages": ASK, "max_tokens": 24, "temperature": 0}
    raw = client.chat.completions.with_raw_response.create(**arguments)
    whole = raw.parse()
    assert raw.headers["x-quantfleet-variant"] == variant
    stream = client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **arguments)
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert "Paris" in text if variant == "bf16" else text.strip()
    assert chunks[0].model_extra is not None
    assert chunks[0].model_extra["quantfleet"]["variant"] == variant
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_the_router_chooses_and_says_why(client: openai.OpenAI) -> None:
    for slo in ("interactive", "standard", "best", {"min_quality": 1.0, "tpot_ms": 5000}):
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=ASK, max_tokens=4, extra_body={"slo": slo}
        )
        variant = raw.headers["x-quantfleet-variant"]
        assert variant in ("bf16", "int8", "nf4")
        assert raw.headers["x-quantfleet-reason"].startswith(variant)
        assert float(raw.headers["x-quantfleet-predicted-ttft-ms"]) > 0
        if slo not in ("interactive", "standard"):
            assert variant == "bf16"
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=ASK, max_tokens=4, extra_headers={"X-SLO-Class": "best", "X-Request-Id": "mine-1"}
    )
    assert raw.headers["x-quantfleet-variant"] == "bf16"
    assert raw.headers["x-request-id"] == "mine-1"


def test_a_seed_repeats_and_choices_differ(client: openai.OpenAI) -> None:
    arguments: Any = {"model": f"{MODEL}:int8", "prompt": "Once upon a time", "max_tokens": 12, "n": 3, "seed": 11}
    first, second = (client.completions.create(**arguments) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices]
    assert len(set(texts)) == 3
    assert first.usage is not None
    assert first.usage.completion_tokens == 36


def test_stop_strings_and_extensions(client: openai.OpenAI) -> None:
    arguments: Any = {"model": f"{MODEL}:bf16", "messages": ASK, "temperature": 0, "max_tokens": 30}
    stopped = client.chat.completions.create(**arguments, stop=[" France"])
    assert stopped.choices[0].message.content == "The capital of"
    assert stopped.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(**arguments, stop=[" France"], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "The capital of"
    longer = client.chat.completions.create(**arguments, extra_body={"ignore_eos": True})
    assert longer.choices[0].finish_reason == "length"
    assert longer.usage is not None
    assert longer.usage.completion_tokens == 30


def test_log_probabilities(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model=f"{MODEL}:bf16", messages=ASK, temperature=0, max_tokens=3, logprobs=True, top_logprobs=2
    )
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content or []
    assert "".join(item.token for item in content) == chat.choices[0].message.content
    assert all(item.logprob == pytest.approx(item.top_logprobs[0].logprob) for item in content)
    echoed = client.completions.create(
        model=f"{MODEL}:bf16", prompt="The capital of France", echo=True, logprobs=1, max_tokens=2, temperature=0
    ).choices[0]
    assert echoed.text.startswith("The capital of France")
    assert echoed.logprobs is not None
    assert echoed.logprobs.token_logprobs is not None
    assert echoed.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in echoed.logprobs.token_logprobs[1:])
    assert "".join(echoed.logprobs.tokens or []) == echoed.text


def test_prompts_of_every_form(client: openai.OpenAI) -> None:
    several = client.completions.create(model=MODEL, prompt=["One two", "Red green"], max_tokens=3, temperature=0)
    assert [choice.index for choice in several.choices] == [0, 1]
    ids = client.completions.create(model=MODEL, prompt=[504, 3575, 282], max_tokens=3)
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 3


def test_errors_have_openais_shape(fleet: Any, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=ASK)
    with pytest.raises(openai.BadRequestError, match=r"1024 tokens.*your prompt has 2000"):
        client.completions.create(model=MODEL, prompt=[5] * 2000)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=ASK, temperature=3)
    assert caught.value.param == "temperature"
    url = f"{fleet.base_url}/chat/completions"
    for content, status in ((b"{", 400), (b'{"model": "\xff"}', 400), (b"x" * (5 * 2**20), 413)):
        response = httpx.post(url, content=content, timeout=30)
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_stream_is_events_through_the_proxy(fleet: Any) -> None:
    body = {"model": MODEL, "messages": ASK, "stream": True, "max_tokens": 5}
    with httpx.stream("POST", f"{fleet.base_url}/chat/completions", json=body, timeout=60) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0].removeprefix("data: "))["object"] == "chat.completion.chunk"


def test_memory_and_capacity_are_told(fleet: Any) -> None:
    for variant in ("bf16", "int8", "nf4"):
        replica = fleet.replica(variant)
        assert replica["kv_tokens_capacity"] == 4096
        assert 100e6 < replica["rss_bytes"] < 1.2e9
