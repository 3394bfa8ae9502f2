"""What ingress and replica say to each other, as msgpack bytes; it knows neither of the two and no transport.

Serve pickles arguments and answers; bytes are the cheapest thing to pickle, and msgspec checks what it decodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from cluster.load import Load
from cluster.request import GenerationRequest, TokenDelta, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """The sequences of one HTTP request: admitted all together or not at all."""

    ingress_id: str
    requests: list[GenerationRequest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The replica's first message."""

    verdict: Verdict
    invalid: str | None = None
    """Why no load would make the request valid; then it is the client's mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What the engine's last steps added to all sequences of one ingress, and the replica's load after them."""

    deltas: list[TokenDelta]
    load: Load
    lost: str | None = None
    """Why the engine is gone; nothing comes after it."""


encode = msgspec.msgpack.Encoder().encode
decode_submission = msgspec.msgpack.Decoder(Submission).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
decode_frame = msgspec.msgpack.Decoder(Frame).decode
decode_load = msgspec.msgpack.Decoder(Load).decode
