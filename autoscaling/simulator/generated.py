"""Made-up traffic by a specification: Poisson, Gamma bursts, a daily wave; it gives requests no class.

poisson:rate=5,duration_s=3600,prompt=512,output=128
gamma:rate=5,cv=4,...                       cv of the times between arrivals; 1 is Poisson
diurnal:peak=10,trough=2,period_s=86400,... a sine from trough to peak and back

Lengths are lognormal with these means; prompt_cv and output_cv (1 by default) are their coefficients of variation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import log, pi

import numpy as np
from numpy.typing import NDArray

from autoscaling.simulator.arrivals import TracedRequest
from cluster.errors import UserError, did_you_mean

LENGTHS = {"prompt": 512.0, "output": 128.0, "prompt_cv": 1.0, "output_cv": 1.0, "duration_s": 3600.0}
KINDS: Mapping[str, Mapping[str, float]] = {
    "poisson": {"rate": 1.0} | LENGTHS,
    "gamma": {"rate": 1.0, "cv": 4.0} | LENGTHS,
    "diurnal": {"peak": 2.0, "trough": 0.5, "period_s": 86400.0} | LENGTHS,
}
MAY_BE_ZERO = ("trough", "prompt_cv", "output_cv")
MOST_REQUESTS = 20_000_000


def generate(spec: str, seed: int) -> Iterator[TracedRequest]:
    """The same specification and seed give the same requests; UserError for a specification that is none."""
    kind, values = _parsed(spec)
    expected = values.get("rate", values.get("peak", 0.0)) * values["duration_s"]
    if expected > MOST_REQUESTS:
        raise UserError(f"--generate: {expected:.3g} requests are too many; give a lower rate or duration_s")
    rng = np.random.default_rng(seed)
    times_s = _times(kind, values, rng)
    prompts = _lengths(len(times_s), values["prompt"], values["prompt_cv"], rng)
    outputs = _lengths(len(times_s), values["output"], values["output_cv"], rng)
    if not len(times_s):
        raise UserError(f"--generate: {spec!r} gives no request; raise the rate or duration_s")
    return (
        TracedRequest(at_s, prompt, output)
        for at_s, prompt, output in zip(times_s.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    )


def _parsed(spec: str) -> tuple[str, dict[str, float]]:
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        raise UserError(f"--generate: no traffic {kind!r}; {did_you_mean(kind, KINDS)}")
    values = dict(KINDS[kind])
    for part in filter(None, rest.split(",")):
        name, _, text = part.partition("=")
        if name not in values:
            raise UserError(f"--generate {kind}: no key {name!r}; {did_you_mean(name, values)}")
        try:
            value = float(text)
        except ValueError:
            raise UserError(f"--generate {kind}: {part!r} is no number; write {name}={values[name]:g}") from None
        if not (0 < value < float("inf") or (value == 0 and name in MAY_BE_ZERO)):
            raise UserError(f"--generate {kind}: {part!r} is not above 0; write {name}={values[name]:g}")
        values[name] = value
    if kind == "diurnal" and values["trough"] > values["peak"]:
        raise UserError(f"--generate diurnal: trough {values['trough']:g} is above peak {values['peak']:g}; swap them")
    return kind, values


def _times(kind: str, values: Mapping[str, float], rng: np.random.Generator) -> NDArray[np.float64]:
    duration_s = values["duration_s"]
    if kind == "diurnal":
        return _wave(values, duration_s, rng)
    shape = 1.0 if kind == "poisson" else values["cv"] ** -2
    scale = 1 / (values["rate"] * shape)
    times_s = np.zeros(0)
    last_s = 0.0
    while last_s < duration_s:
        gaps = rng.gamma(shape, scale, size=1024 + int((duration_s - last_s) * values["rate"]))
        times_s = np.concatenate([times_s, last_s + np.cumsum(gaps)])
        last_s = float(times_s[-1])
    return times_s[times_s < duration_s]


def _wave(values: Mapping[str, float], duration_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """By thinning (Lewis and Shedler 1979): arrivals at the peak's rate, each kept by the rate of its time."""
    peak, trough = values["peak"], values["trough"]
    times_s = np.sort(rng.uniform(0, duration_s, rng.poisson(peak * duration_s)))
    rates = (peak + trough) / 2 - (peak - trough) / 2 * np.cos(2 * pi * times_s / values["period_s"])
    return times_s[rng.uniform(0, peak, len(times_s)) < rates]


def _lengths(count: int, mean: float, cv: float, rng: np.random.Generator) -> NDArray[np.int64]:
    variance = log(1 + cv**2)
    drawn = rng.lognormal(log(mean) - variance / 2, variance**0.5, count)
    return np.maximum(1, np.rint(drawn)).astype(np.int64)
