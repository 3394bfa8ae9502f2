"""OpenAI's Batch API by OpenAI's own client, on the fleet and by its job code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.conftest import FLEET_YAML

pytestmark = pytest.mark.ray

MODEL = "smollm2-135m"
NUM_ROWS = 300
CHAT: Any = "/v1/chat/completions"


def line(custom_id: str, **body: Any) -> str:
    whole = {"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], "temperature": 0, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": whole}) + "\n"


def created(client: openai.OpenAI, lines: list[str]) -> Any:
    file = client.files.create(file=("requests.jsonl", "".join(lines).encode()), purpose="batch")
    assert file.status == "processed"
    return client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"of": "a test"}
    )


def ended(fleet: Any, client: openai.OpenAI, batch_id: str, timeout_s: float = 90.0) -> Any:
    over = ("completed", "failed", "cancelled", "expired")
    fleet.eventually(lambda: client.batches.retrieve(batch_id).status in over, timeout_s)
    return client.batches.retrieve(batch_id)


def records(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """By custom_id, each of which is there once."""
    assert file_id is not None
    found = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    assert len({record["custom_id"] for record in found}) == len(found)
    return {record["custom_id"]: record for record in found}


def test_the_official_client_gets_its_results_and_its_errors(fleet: Any, client: openai.OpenAI) -> None:
    lines = [line(f"row-{number}", max_tokens=2 + number % 3) for number in range(20)]
    batch = ended(fleet, client, created(client, [*lines, line("unknown", max_tokens=4, no_such=1)]).id)
    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (21, 20, 1)
    assert batch.metadata == {"of": "a test"}
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at < batch.expires_at

    results = records(client, batch.output_file_id)
    assert results.keys() == {f"row-{number}" for number in range(20)}
    answers = {name: result["response"]["body"] for name, result in results.items()}
    assert all(answers[f"row-{number}"]["usage"]["completion_tokens"] == 2 + number % 3 for number in range(20))
    assert batch.usage.output_tokens == sum(answer["usage"]["completion_tokens"] for answer in answers.values())
    online = client.chat.completions.create(
        model=answers["row-1"]["model"], messages=[{"role": "user", "content": "Hello!"}], temperature=0, max_tokens=3
    )
    assert answers["row-1"]["choices"][0]["message"]["content"] == online.choices[0].message.content
    assert records(client, batch.error_file_id)["unknown"]["response"]["status_code"] == 400


def test_a_batch_that_waits_is_cancelled_while_another_runs(fleet: Any, client: openai.OpenAI) -> None:
    first = created(client, [line(f"row-{number}", max_tokens=20) for number in range(8)])
    second = created(client, [line("a"), line("b")])
    fleet.eventually(lambda: client.batches.retrieve(second.id).status == "in_progress", 60)
    assert client.batches.cancel(second.id).status == "cancelling"
    cancelled = ended(fleet, client, second.id)
    assert (cancelled.status, cancelled.output_file_id) == ("cancelled", None)
    assert records(client, cancelled.error_file_id).keys() == {"a", "b"}
    assert [batch.id for batch in client.batches.list(limit=2).data] == [second.id, first.id]
    assert client.batches.cancel(first.id).status == "cancelling"
    assert ended(fleet, client, first.id).status == "cancelled"


@pytest.mark.slow
def test_a_batch_that_runs_keeps_what_is_done_when_it_is_cancelled(fleet: Any, client: openai.OpenAI) -> None:
    short = [line(f"short-{number}", max_tokens=1) for number in range(40)]
    long = [line(f"long-{number}", max_tokens=300, ignore_eos=True) for number in range(200)]
    batch_id = created(client, [*short, *long]).id
    fleet.eventually(lambda: client.batches.retrieve(batch_id).request_counts.completed >= 8, 90)
    assert client.batches.cancel(batch_id).status == "cancelling"
    batch = ended(fleet, client, batch_id)
    assert batch.status == "cancelled"
    assert batch.cancelling_at <= batch.cancelled_at
    done, left = records(client, batch.output_file_id), records(client, batch.error_file_id)
    assert len(done) == batch.request_counts.completed >= 8
    assert len(done) + len(left) == 240
    assert not done.keys() & left.keys()
    assert {record["error"]["code"] for record in left.values()} == {"batch_cancelled"}


@pytest.mark.slow
def test_a_batch_goes_on_after_the_server_was_killed(serve_of: Any, tmp_path: Path) -> None:
    """A fleet of its own, twice: the second finds what the first has left."""
    fleet_yaml = f"{FLEET_YAML}\nvariants: {{bf16: {{method: none}}}}\n"
    with serve_of(fleet_yaml, tmp_path) as fleet:
        client = fleet.client()
        rows = [line(f"row-{n}", max_tokens=1 + n % 50, ignore_eos=True) for n in range(NUM_ROWS)]
        batch_id = created(client, rows).id
        fleet.eventually(lambda: client.batches.retrieve(batch_id).request_counts.completed >= 5, 120)
        fleet.process.kill()
        fleet.process.wait()
    with serve_of(fleet_yaml, tmp_path) as fleet:
        client = fleet.client()
        before = client.batches.retrieve(batch_id)
        assert before.status == "in_progress"
        assert 5 <= before.request_counts.completed < NUM_ROWS
        batch = ended(fleet, client, batch_id, 150)
        assert (batch.status, batch.request_counts.completed) == ("completed", NUM_ROWS)
        answers = records(client, batch.output_file_id)
        assert answers.keys() == {f"row-{n}" for n in range(NUM_ROWS)}
        bodies = {name: answer["response"]["body"] for name, answer in answers.items()}
        assert all(bodies[f"row-{n}"]["usage"]["completion_tokens"] == 1 + n % 50 for n in range(NUM_ROWS))
