"""Ten thousand requests through one engine on the GPU: every one ends once, and nothing is left behind or grows."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from cluster.request import GenerationRequest, SamplingParams
from cluster.variants import Variant
from engine.engine import Engine
from engine.gpu.startup import start_runner
from tests.engine.gpu.conftest import write_smollm2_config
from tests.engine.gpu.greedy import spec_of

REQUESTS = 10_000
WARM_AFTER = 2_000
VOCAB = 49152
SLACK_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Bytes of this process."""

    reserved: int
    device: int
    rss: int

    @classmethod
    def now(cls) -> Held:
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        rss = psutil.Process().memory_info().rss
        return cls(reserved=torch.cuda.memory_reserved(), device=total - free, rss=rss)


def random_request(number: int, chosen: random.Random) -> GenerationRequest:
    sampling: dict[str, object] = {"max_tokens": chosen.randint(8, 128), "ignore_eos": chosen.random() < 0.5}
    kind = chosen.random()
    if kind < 0.1:
        sampling |= {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "logit_bias": {5: -100.0}}
    elif kind < 0.2:
        sampling |= {"logprobs": chosen.randint(0, 5)}
    elif kind < 0.5:
        sampling |= {"top_p": 0.9, "top_k": chosen.choice([0, 50])}
    elif kind < 0.6:
        sampling |= {"temperature": 0.0}
    return GenerationRequest(
        request_id=str(number),
        prompt_token_ids=[chosen.randrange(3, VOCAB) for _ in range(chosen.randint(8, 128))],
        sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
    )


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_requests_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_of(
        write_smollm2_config(tmp_path),
        "cuda",
        Variant(name="bf16"),
        load_format="dummy",
        kv_capacity_tokens=24576,
        max_context=512,
        max_sequences=256,
        token_budget=1024,
    )
    engine = Engine(spec, start_runner(spec))
    chosen = random.Random(20261122)
    requests = [random_request(number, chosen) for number in range(REQUESTS)]
    to_abort = {request.request_id for request in requests if chosen.random() < 0.1}
    aborts: dict[int, list[str]] = defaultdict(list)
    ended: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    num_tokens: Counter[str] = Counter()
    warm: Held | None = None
    added = step = 0
    started_s = time.perf_counter()
    while added < REQUESTS or engine.has_work:
        while added < REQUESTS and engine.add(requests[added]).admitted:
            if requests[added].request_id in to_abort:
                aborts[step + chosen.randint(0, 150)].append(requests[added].request_id)
            added += 1
        assert engine.has_work, "an empty engine refuses"
        for request_id in aborts.pop(step, []):
            engine.abort(request_id)
        for delta in engine.step():
            assert delta.error is None, delta.error
            assert delta.request_id not in ended, "a delta after the last one"
            num_tokens[delta.request_id] += len(delta.token_ids)
            if delta.finish_reason is not None:
                ended[delta.request_id] += 1
                reasons[delta.request_id] = delta.finish_reason
        step += 1
        if warm is None and len(ended) >= WARM_AFTER:
            warm = Held.now()
    wall_s = time.perf_counter() - started_s
    end = Held.now()
    with capsys.disabled():
        total = sum(num_tokens.values())
        print(f"\n{REQUESTS / wall_s:.1f} requests/s, {total / wall_s:.0f} tokens/s, {step} steps; {warm} -> {end}")

    assert engine.load().kv_tokens_used == 0
    assert set(ended) == {request.request_id for request in requests}
    assert set(ended.values()) == {1}
    aborted = {request_id for request_id, reason in reasons.items() if reason == "abort"}
    assert aborted
    assert aborted <= to_abort
    for request in requests:
        if reasons[request.request_id] == "length":
            assert num_tokens[request.request_id] == request.sampling.max_tokens
    assert warm is not None
    for name in ("reserved", "device", "rss"):
        before, after = getattr(warm, name), getattr(end, name)
        assert after - before <= max(0.01 * before, SLACK_BYTES), f"{name} grew from {before} to {after}"
