"""What the engine's steps add up to: shapes, rates, the ratio of measured to predicted time; it predicts nothing."""

from __future__ import annotations

from collections.abc import Sequence as Chunks

from cluster.profile import StepShape
from engine.rates import DecayingRate, SmoothedRatio
from engine.sequence import ScheduledChunk


def step_shape(chunks: Chunks[ScheduledChunk]) -> StepShape:
    """A chunk of one token is a decode to the hardware, also where it is the last of a prompt."""
    decodes = [chunk for chunk in chunks if chunk.num_tokens == 1]
    prefills = [chunk for chunk in chunks if chunk.num_tokens > 1]
    return StepShape(
        decode_sequences=len(decodes),
        kv_tokens=sum(chunk.start + 1 for chunk in decodes),
        prefill_tokens=sum(chunk.num_tokens for chunk in prefills),
        prefill_context_tokens=sum(chunk.start for chunk in prefills),
    )


class StepMeter:
    """Counts over an engine's life, and rates over its last seconds."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.steps = 0
        self.busy_s = 0.0
        self.step_sequences = 0
        self.prefill_rate = DecayingRate()
        self.decode_rate = DecayingRate()
        self.step_time_ratio = SmoothedRatio()

    def record(
        self, shape: StepShape, *, num_sequences: int, step_s: float, predicted_s: float | None, now_s: float
    ) -> None:
        """`shape` of the online requests, whom the rates are of; sequences and times of the whole step."""
        self.steps += 1
        self.busy_s += step_s
        self.step_sequences += num_sequences
        self.prefill_rate.record(shape.prefill_tokens, now_s)
        self.decode_rate.record(shape.decode_sequences, now_s)
        if predicted_s:
            self.step_time_ratio.record(step_s, predicted_s)
