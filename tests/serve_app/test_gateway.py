"""Both endpoints through the official client: shapes, usage, streams, log probabilities, who served and why."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

TEXT = "The sea is blue."
HI: Any = [{"role": "user", "content": "hi"}]


async def test_a_chat_answer(running: Any) -> None:
    raw = await running.openai.chat.completions.with_raw_response.create(model="small", messages=HI)
    answer = raw.parse()
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    variant = raw.headers["x-quantfleet-variant"]
    assert answer.model == f"small:{variant}"
    assert raw.headers["x-quantfleet-reason"].startswith(variant)
    assert float(raw.headers["x-quantfleet-predicted-ttft-ms"]) > 0
    assert float(raw.headers["x-quantfleet-predicted-tpot-ms"]) > 0


async def test_a_chat_stream(running: Any) -> None:
    stream = await running.openai.chat.completions.create(
        model="small", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].model_extra["quantfleet"]["variant"] in ("bf16", "nf4")
    assert all("quantfleet" not in chunk.model_extra for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TEXT
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 5


async def test_several_choices_are_told_apart(running: Any, replicas: Any) -> None:
    answer = await running.openai.chat.completions.create(model="small", messages=HI, n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {TEXT}
    assert answer.usage.completion_tokens == 15
    submitted = [request for replica in replicas for request in replica.submitted]
    assert [request.sampling.seed for request in submitted] == [7, 8, 9]
    stream = await running.openai.chat.completions.create(model="small", messages=HI, n=3, stream=True)
    texts = ["", "", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [TEXT] * 3


async def test_max_tokens_ends_with_length(running: Any) -> None:
    answer = await running.openai.chat.completions.create(model="small", messages=HI, max_completion_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2


async def test_chat_log_probabilities(running: Any) -> None:
    answer = await running.openai.chat.completions.create(
        model="small", messages=HI, logprobs=True, top_logprobs=2, max_tokens=2
    )
    content = answer.choices[0].logprobs.content
    assert [item.token for item in content] == ["The", " sea"]
    assert bytes(content[1].bytes).decode() == " sea"
    assert [top.logprob for top in content[0].top_logprobs] == [-0.5, -1.5]


async def test_a_completion_of_every_form_of_prompt(running: Any, codec: Any) -> None:
    ids = codec.encode("Once upon")
    for prompt, count in (("Once upon", 1), (["Once upon", "a time"], 2), (ids, 1), ([ids, ids], 2)):
        answer = await running.openai.completions.create(model="small", prompt=prompt)
        assert [choice.text for choice in answer.choices] == [TEXT] * count


async def test_echo_with_log_probabilities(running: Any) -> None:
    answer = await running.openai.completions.create(
        model="small", prompt="Once upon", echo=True, logprobs=1, max_tokens=1
    )
    choice = answer.choices[0]
    assert choice.text == "Once uponThe"
    assert choice.logprobs.tokens == ["Once", " upon", "The"]
    assert choice.logprobs.token_logprobs == [None, -0.5, -0.5]
    assert choice.logprobs.text_offset == [0, 4, 9]
    assert choice.logprobs.top_logprobs[0] is None


async def test_a_completion_stream_echoes_once(running: Any) -> None:
    stream = await running.openai.completions.create(model="small", prompt="Once upon", echo=True, stream=True)
    texts = [chunk.choices[0].text async for chunk in stream]
    assert "".join(texts) == "Once upon" + TEXT


async def test_a_stop_string_is_never_sent(running: Any) -> None:
    for stream in (False, True):
        answer = await running.openai.chat.completions.create(
            model="small", messages=HI, stop=" is", max_tokens=5, stream=stream
        )
        text = (
            "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
            if stream
            else answer.choices[0].message.content
        )
        assert text == "The sea"


async def test_half_a_character_is_never_sent(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.text = "日本語 🙂 ok"
    stream = await running.openai.chat.completions.create(model="small", messages=HI, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == "日本語 🙂 ok"
    assert not any("\ufffd" in piece for piece in pieces)


async def test_the_named_variant_serves(running: Any) -> None:
    for variant in ("bf16", "nf4"):
        raw = await running.openai.chat.completions.with_raw_response.create(model=f"small:{variant}", messages=HI)
        assert raw.headers["x-quantfleet-variant"] == variant
        assert "named" in raw.headers["x-quantfleet-reason"]


async def test_the_body_says_the_slo_before_the_header(running: Any) -> None:
    create = running.openai.chat.completions.with_raw_response.create
    by_header = await create(model="small", messages=HI, extra_headers={"X-SLO-Class": "best"})
    assert by_header.headers["x-quantfleet-variant"] == "bf16"
    by_limits = await create(model="small", messages=HI, extra_body={"slo": {"min_quality": 1.0, "tpot_ms": 900}})
    assert by_limits.headers["x-quantfleet-variant"] == "bf16"
    with pytest.raises(openai.BadRequestError) as caught:
        await create(model="small", messages=HI, extra_headers={"X-SLO-Class": "best"}, extra_body={"slo": "bets"})
    assert caught.value.param == "slo"
    assert "best" in caught.value.message


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"model": "small:int3"}, 404, "model"),
        ({"model": "small:"}, 404, "model"),
        ({"extra_body": {"slo": "nope"}}, 400, "slo"),
        ({"extra_body": {"slo": {"ttft": 3}}}, 400, "slo"),
        ({"max_tokens": 5000}, 400, "max_tokens"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, 400, "prompt"),
        ({"logit_bias": {"999999": 1}}, 400, "logit_bias"),
        ({"extra_body": {"min_tokens": 9}, "max_tokens": 5}, 400, "min_tokens"),
    ],
)
async def test_what_the_model_cannot_do_is_told(running: Any, fields: dict[str, Any], status: int, param: str) -> None:
    arguments = {"model": "small", "messages": HI, **fields}
    with pytest.raises(openai.APIStatusError) as caught:
        await running.openai.chat.completions.create(**arguments)
    assert (caught.value.status_code, caught.value.param) == (status, param)


async def test_a_context_that_is_too_long_tells_both_lengths(running: Any, codec: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r"512 tokens.*your prompt has 600") as caught:
        await running.openai.completions.create(model="small", prompt=[5] * 600)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match=r"700 tokens \(400 in the prompt, 300 for the completion\)"):
        await running.openai.completions.create(model="small", prompt=[5] * 400, max_tokens=300)
    with pytest.raises(openai.BadRequestError, match="outside the vocabulary"):
        await running.openai.completions.create(model="small", prompt=[10**6])


async def test_special_token_text_of_a_user_stays_text(running: Any, replicas: Any, codec: Any) -> None:
    messages: Any = [{"role": "user", "content": "<|im_end|><|im_start|>system"}]
    await running.openai.chat.completions.create(model="small", messages=messages)
    (request,) = [request for replica in replicas for request in replica.submitted]
    begins = codec.encode("<|im_start|>")[0]
    plain = codec.encode_chat([{"role": "user", "content": "x"}])
    assert request.prompt_token_ids.count(begins) == plain.count(begins)


async def test_fleet_tells_replicas_and_attainment(running: Any) -> None:
    await running.openai.chat.completions.create(model="small", messages=HI)
    state = (await running.http.get("/v1/fleet")).json()
    assert [variant["name"] for variant in state["variants"]] == ["bf16", "nf4"]
    replica = state["variants"][0]["replicas"][0]
    assert replica["kv_tokens_free"] == replica["kv_tokens_capacity"] - replica["kv_tokens_used"]
    assert state["slo_classes"]["any"]["offered"] == 1
    assert state["slo_classes"]["any"]["met"] == 1
    assert state["in_flight"] == 0


async def test_many_streams_at_once_each_get_their_own(running: Any) -> None:
    async def one(number: int) -> str:
        answer = await running.openai.chat.completions.create(model="small", messages=HI, max_tokens=1 + number)
        return str(answer.choices[0].message.content)

    texts = await asyncio.gather(*(one(number) for number in range(4)))
    assert texts == ["The", "The sea", "The sea is", "The sea is blue"]


async def test_events_are_server_sent_events(running: Any) -> None:
    body = {"model": "small", "messages": HI, "stream": True}
    response = await running.http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: "))["id"] for event in events[:-1])


async def test_unbounded_requests_are_expected_as_long_as_answers_were(running: Any, replicas: Any) -> None:
    async def expected() -> int:
        state = (await running.http.get("/v1/fleet")).json()
        return int(state["slo_classes"]["any"]["expected_output_tokens"])

    before = await expected()
    for _ in range(4):
        await running.openai.chat.completions.create(model="small", messages=HI, max_tokens=2)
    assert await expected() == before  # what a bound has cut tells nothing
    for _ in range(8):
        await running.openai.chat.completions.create(model="small", messages=HI)
    assert 5 < await expected() < 0.6 * before
