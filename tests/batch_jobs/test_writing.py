"""Result files in both formats."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from batch_jobs.openai_requests import RowRequest
from batch_jobs.openai_results import answer_of, refusal_of
from batch_jobs.writing import ANSWER, RESULT_SCHEMA, ResultRow, results_table, tables_of, write_file
from cluster.request import SamplingParams, TokenLogprob
from engine.text import TextCodec
from serve_app.formats import ChatFormat, CompletionFormat, Head
from serve_app.output import Piece
from serve_app.prompts import Prompt

ROW = ResultRow(
    id="r",
    prompt="p",
    text="täxt\n",
    prompt_tokens=1,
    completion_tokens=2,
    finish_reason="stop",
    variant="bf16",
    fingerprint="f",
    error=None,
)


def test_both_formats_give_the_rows_back(tmp_path: Path) -> None:
    table = results_table([ROW, ROW])
    write_file(tmp_path / "a.parquet", table, "parquet")
    write_file(tmp_path / "a.jsonl", table, "jsonl")
    assert pq.read_table(tmp_path / "a.parquet").equals(table)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines == table.to_pylist()
    assert list(lines[0]) == RESULT_SCHEMA.names


def test_openais_format_answers_as_the_http_api_does(tmp_path: Path, checkpoint: Path) -> None:
    codec = TextCodec(checkpoint)
    ids = codec.encode("Hello there")
    logprobs = [TokenLogprob(token_id=token, logprob=-0.5, top=[(token, -0.5)]) for token in ids]
    piece = Piece(index=0, token_ids=ids, text="täxt\n", logprobs=logprobs, prompt_logprobs=None, finish_reason="stop")
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    head = Head(id="", created=0, model="m:bf16")
    prompt = Prompt(token_ids=[1], text="p")
    expected = {
        "/v1/chat/completions": ChatFormat(head, codec, with_logprobs=True).whole([[piece]], usage),
        "/v1/completions": CompletionFormat(head, codec, [prompt], echo=False, with_logprobs=True).whole(
            [[piece]], usage
        ),
    }
    answers = []
    for url in expected:
        request = RowRequest(url=url, model="m", sampling=SamplingParams(logprobs=1)).encoded()
        answers.append(answer_of(request, "bf16", ids, logprobs, codec))
    table = results_table([replace(ROW, id=url) for url in expected])
    table = table.append_column(ANSWER, [answers])
    write_file(tmp_path / "a.jsonl", table, "openai-batch")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines}) == 2
    for line in lines:
        assert list(line) == ["id", "custom_id", "response", "error"]
        assert (line["response"]["status_code"], line["error"]) == (200, None)
        body = line["response"]["body"]
        assert body.pop("id").startswith(("chatcmpl-", "cmpl-"))
        assert body.pop("created") > 1_700_000_000
        whole = expected[line["custom_id"]]
        assert body == {name: value for name, value in whole.items() if name not in ("id", "created")}


def test_errors_have_a_file_of_their_own_in_openais_format(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, id="bad", error="too long"), replace(ROW, id="lost", error="the engine ended")]
    requests = [RowRequest(model="m"), RowRequest(status=404, param="model", code="c"), RowRequest(model="m")]
    answers = [refusal_of(request.encoded()) for request in requests]
    tables = tables_of(results_table(rows).append_column(ANSWER, [answers]), "openai-batch")
    assert {name: table["id"].to_pylist() for name, table in tables.items()} == {
        "part": ["r"],
        "errors": ["bad", "lost"],
    }
    write_file(tmp_path / "e.jsonl", tables["errors"], "openai-batch")
    responses = [json.loads(line)["response"] for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [response["status_code"] for response in responses] == [404, 500]
    assert [response["body"] for response in responses] == [
        {"error": {"message": "too long", "type": "invalid_request_error", "param": "model", "code": "c"}},
        {"error": {"message": "the engine ended", "type": "server_error", "param": None, "code": None}},
    ]
