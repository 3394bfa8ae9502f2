"""Arrivals: the requests of a simulation with their SLO classes, from a trace or made up; it simulates nothing."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil

from cluster.errors import UserError, did_you_mean

PREFIX_BLOCK_TOKENS = 512
"""Prompt tokens behind one id of a prefix; Mooncake's figure."""
SHARES_SUM_TO = 1e-6


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One request as a trace has it: no class yet."""

    at_s: float
    """Since the first request."""
    prompt_tokens: int
    output_tokens: int
    prefix: tuple[int, ...] = ()
    """Ids of the prompt's blocks of PREFIX_BLOCK_TOKENS; two prompts share as much as their ids do."""


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    prompt_tokens: int
    output_tokens: int
    slo_class: str
    prefix: tuple[int, ...] = ()


def arrivals(
    requests: Iterable[TracedRequest], shares: Mapping[str, float], *, seed: int, rate: float = 1.0
) -> Iterator[Arrival]:
    """Every request with a class drawn by its share; `rate` times as many arrive in a second."""
    names, bounds = list(shares), list(accumulate(shares.values()))
    last, draw = len(names) - 1, random.Random(seed).random
    for request in requests:
        yield Arrival(
            at_s=request.at_s / rate,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            slo_class=names[bisect_right(bounds, draw() * bounds[-1], 0, last)],
            prefix=request.prefix,
        )


def warmed_up(requests: Iterable[Arrival], warm_up_s: float) -> Iterator[Arrival]:
    """The requests from `warm_up_s` on, and before them the same in a circle, as if they had come round before."""
    if warm_up_s <= 0:
        yield from requests
        return
    once = list(requests)
    last_s = once[-1].at_s
    around_s = last_s + last_s / max(1, len(once) - 1) or warm_up_s
    for turn in range(-ceil(warm_up_s / around_s), 1):
        start_s = warm_up_s + turn * around_s
        for request in once:
            if start_s + request.at_s >= 0:
                yield replace(request, at_s=start_s + request.at_s)


def parse_shares(text: str, classes: Iterable[str]) -> dict[str, float]:
    """`interactive=.6,standard=.3,throughput=.1`; UserError for what names no class or does not sum to 1."""
    known = list(classes)
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in known:
            raise UserError(f"--classes: no SLO class {name!r}; {did_you_mean(name, known)}")
        try:
            shares[name] = float(value)
        except ValueError:
            raise UserError(f"--classes: {part!r} is no share; write {name}=0.5") from None
        if not 0 <= shares[name] <= 1:
            raise UserError(f"--classes: {part!r} is not between 0 and 1; write {name}=0.5")
    if abs(sum(shares.values()) - 1) > SHARES_SUM_TO:
        raise UserError(f"--classes: the shares of {text!r} sum to {sum(shares.values()):g}; make it 1")
    return shares
