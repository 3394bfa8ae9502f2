"""The wire between parent and engine process: every message survives, in whatever pieces the bytes come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.accelerators import known_accelerators
from cluster.engine_spec import EngineSpec
from cluster.load import Load
from cluster.request import GenerationRequest, SamplingParams, TokenDelta, TokenLogprob, Verdict
from cluster.variants import Variant
from engine.wire import (
    Abort,
    Answer,
    DeltaBuffer,
    Failed,
    FrameReader,
    Ready,
    Start,
    StepMessage,
    Stop,
    Submit,
    ToChild,
    ToParent,
    decode_for_child,
    decode_for_parent,
    frame,
)

LOAD = Load(replica_id="bf16-0", variant="bf16", measured_at_s=1.5, kv_tokens_capacity=64, kv_tokens_used=16)

SPEC = EngineSpec(
    replica_id="bf16-0",
    checkpoint="/models/x",
    variant=Variant(name="int8", method="int8", quality=0.98),
    kv_capacity_tokens=64,
    max_context=64,
    accelerator=known_accelerators()["H100-80G"],
)

TO_CHILD: list[ToChild] = [
    Start(SPEC),
    Submit(
        GenerationRequest(
            request_id="a",
            prompt_token_ids=[1, 2, 3],
            sampling=SamplingParams(
                logit_bias={7: -1.5}, stop=("é", "\n"), stop_token_ids=(4,), seed=2**62, logprobs=2
            ),
            priority=-3,
            objective="throughput",
            deadline_s=-0.25,
        )
    ),
    Abort("a"),
    Stop(),
]

LOGPROB = TokenLogprob(token_id=5, logprob=-0.5, top=[(5, -0.5), (6, -1.0)])

TO_PARENT: list[ToParent] = [
    Ready(LOAD),
    Failed("no such checkpoint"),
    Answer(request_id="a", verdict=Verdict(admitted=False, reason="full", load=LOAD, retry_after_s=2.5)),
    Answer(request_id="a", invalid="prompt: it holds no tokens"),
    StepMessage(
        deltas=[
            TokenDelta(
                request_id="a",
                token_ids=[5],
                logprobs=[LOGPROB],
                prompt_logprobs=[None, LOGPROB],
                cached_tokens=3,
                queued_s=0.25,
            ),
            TokenDelta(request_id="b", token_ids=[], finish_reason="error", error="why"),
        ],
        load=LOAD,
    ),
]


def test_every_message_survives() -> None:
    reader = FrameReader()
    assert [decode_for_child(part) for message in TO_CHILD for part in reader.feed(frame(message))] == TO_CHILD
    assert [decode_for_parent(part) for message in TO_PARENT for part in reader.feed(frame(message))] == TO_PARENT


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_frames_come_whole_from_bytes_in_any_pieces(sizes: list[int]) -> None:
    data = b"".join(map(frame, TO_PARENT))
    reader = FrameReader()
    messages = []
    position = 0
    for size in [*sizes, len(data)]:
        messages += [decode_for_parent(part) for part in reader.feed(data[position : position + size])]
        position += size
    assert messages == TO_PARENT


def test_waiting_deltas_of_a_request_are_joined() -> None:
    buffer = DeltaBuffer()
    first = TokenDelta(
        request_id="a", token_ids=[1], cached_tokens=8, queued_s=0.0, prompt_logprobs=[None], logprobs=[LOGPROB]
    )
    other = TokenDelta(request_id="b", token_ids=[7])
    last = TokenDelta(request_id="a", token_ids=[2], finish_reason="stop", logprobs=[LOGPROB])
    buffer.add([first, other])
    buffer.add([last])
    assert len(buffer) == 2
    assert buffer.take() == [
        TokenDelta(
            request_id="a",
            token_ids=[1, 2],
            logprobs=[LOGPROB, LOGPROB],
            prompt_logprobs=[None],
            cached_tokens=8,
            queued_s=0.0,
            finish_reason="stop",
        ),
        other,
    ]
    assert buffer.take() == []
