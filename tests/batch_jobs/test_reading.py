"""Readers: every kind of file, and every kind of bad row as an error in its row."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs import records
from batch_jobs.input_files import file_end, find_input_files
from batch_jobs.prompt_template import PromptTemplate
from batch_jobs.reading import Columns, InputRow, limited, placed_rows, read_rows


def read(path: Path, **columns: str) -> list[InputRow]:
    (file,) = find_input_files([str(path)])
    return list(read_rows(file, Columns(**columns)))


def written(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_jsonl_prompts_chats_and_ids(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Grüße?"}]
    rows = read(
        written(
            tmp_path / "in.jsonl",
            json.dumps({"id": "a", "prompt": "one"}),
            json.dumps({"id": 7, "prompt": "two", "other": [1, {"x": None}]}),
            "",
            json.dumps({"messages": messages}),
            json.dumps({"prompt": messages, "id": ""}),
        )
    )
    assert [(row.id, row.is_chat, row.error) for row in rows] == [
        ("a", False, None),
        ("7", False, None),
        ("in.jsonl:4", True, None),
        ("in.jsonl:5", True, None),
    ]
    assert rows[0].prompt == "one"
    assert json.loads(rows[2].prompt) == messages


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"prompt": "cut', "malformed JSON"),
        ("[1, 2]", "a row is an object"),
        ("[" * 100_000, "malformed JSON"),
        ('{"question": "x"}', "no value in column 'prompt' or 'messages'; the row has: question"),
        ('{"prompt": null}', "no value in column"),
        ('{"prompt": 3.5}', "is the number 3.5"),
        ('{"prompt": true}', "is true or false"),
        ('{"prompt": "  "}', "is empty"),
        ('{"prompt": {"text": "x"}}', "is an object"),
        ('{"prompt": "\\ud800"}', "not valid UTF-8"),
        ('{"id": [1], "prompt": "x"}', "column 'id' is a list"),
        ('{"id": 1.5, "prompt": "x"}', "column 'id' is the number 1.5"),
        ('{"messages": []}', "a list of messages, one at least"),
        ('{"messages": "hello"}', "is text; a chat is a list"),
        ('{"messages": ["hello"]}', "messages[0] is text"),
        ('{"messages": [{"role": "user"}]}', "messages[0].content is missing"),
        ('{"messages": [{"role": 1, "content": "x"}]}', "messages[0].role is the number 1"),
        (b'{"prompt": "\xff"}', "not valid UTF-8 at byte 12"),
        ('{"prompt": 1' + "0" * 5000 + "}", "malformed JSON"),
    ],
)
def test_a_bad_jsonl_row_is_an_error_in_its_row(tmp_path: Path, line: str | bytes, error: str) -> None:
    rows = read(written(tmp_path / "in.jsonl", '{"prompt": "before"}', line, '{"prompt": "after"}'))
    assert [row.error is None for row in rows] == [True, False, True]
    assert error in (rows[1].error or "")
    assert "\n" not in (rows[1].error or "")
    assert rows[2] == InputRow(id="in.jsonl:3", prompt="after")


def test_a_line_beyond_the_bound_is_skipped_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 64)
    long = json.dumps({"prompt": "x" * 1000})
    rows = read(written(tmp_path / "in.jsonl", long, '{"prompt": "after"}', long))
    assert [(row.id, row.prompt, row.error) for row in rows] == [
        ("in.jsonl:1", "", "the line is longer than 64 bytes"),
        ("in.jsonl:2", "after", None),
        ("in.jsonl:3", "", "the line is longer than 64 bytes"),
    ]


def test_the_named_columns_are_read(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", '{"key": "k", "q": "one", "id": "no"}', '{"q": "two", "id": "no"}')
    first, second = read(path, prompt="q", id="key")
    assert (first.id, first.prompt) == ("k", "one")
    assert (second.id, second.error) == ("in.jsonl:2", "no value in the id column 'key'; the row has: q, id")


def test_csv_and_tsv(tmp_path: Path) -> None:
    rows = read(
        written(
            tmp_path / "in.csv",
            b"\xef\xbb\xbfid,prompt",
            'a,"two\nlines, one comma"',
            "b,x,y",
            "c,",
            b"d,\xff",
            ",made",
            "",
        )
    )
    assert rows[0] == InputRow(id="a", prompt="two\nlines, one comma")
    assert rows[1].error == "3 fields, the header has 2; quote fields that hold a comma"
    assert [row.id for row in rows[2:4]] == ["c", "d"]
    assert "no value in column 'prompt'" in (rows[2].error or "")
    assert "not valid UTF-8" in (rows[3].error or "")
    assert rows[4] == InputRow(id="in.csv:5", prompt="made")
    assert [row.prompt for row in read(written(tmp_path / "in.tsv", "prompt\tid", "a, b\t1"))] == ["a, b"]


def test_csv_with_an_open_quote_goes_on_after_its_field_is_too_long(tmp_path: Path) -> None:
    lines = ["id,prompt", 'a,"open', *["x" * 1000] * 200, "b,good"]
    rows = read(written(tmp_path / "in.csv", *lines))
    assert "field larger than field limit" in (rows[0].error or "")
    assert rows[-1] == InputRow(id="b", prompt="good")


def test_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    rows = read(written(tmp_path / "in.txt", "first ", "", b"bad \xff", "last\r"), prompt="question", id="key")
    assert [(row.id, row.prompt) for row in rows] == [("in.txt:1", "first "), ("in.txt:3", ""), ("in.txt:4", "last")]
    assert "not valid UTF-8" in (rows[1].error or "")


def test_parquet_in_row_groups_with_chats_and_other_columns(tmp_path: Path) -> None:
    records = [{"id": i, "messages": [{"role": "user", "content": f"q{i}"}], "n": [i]} for i in range(600)]
    records[5]["messages"] = None
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "in.parquet", row_group_size=100)
    rows = read(tmp_path / "in.parquet")
    assert [row.id for row in rows] == [str(i) for i in range(600)]
    assert "no value in column" in (rows[5].error or "")
    assert json.loads(rows[599].prompt) == [{"role": "user", "content": "q599"}]


def test_a_damaged_parquet_file_keeps_its_good_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    table = pa.Table.from_pylist([{"prompt": f"question {i} " + "x" * 50} for i in range(2000)])
    pq.write_table(table, path, row_group_size=500, compression="snappy", use_dictionary=False)
    start = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 4000] = b"\xff" * 4000
    path.write_bytes(data)
    rows = read(path)
    assert len(rows) > 500
    assert all(row.error is None for row in rows[:-1])
    assert "damaged from here on" in (rows[-1].error or "")


def test_a_limit_counts_rows_over_all_files(tmp_path: Path) -> None:
    written(tmp_path / "1.txt", "a", "", "b")
    written(tmp_path / "2.csv", "prompt", '"c\nc"', "d", "e")
    written(tmp_path / "3.txt", "f")
    files = limited(find_input_files([str(tmp_path)]), Columns(), 4)
    assert [row.prompt for file in files for row in read_rows(file, Columns())] == ["a", "b", "c\nc", "d"]
    assert [file.name for file in files] == ["1.txt", "2.csv"]


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.txt", "in.parquet", "in.arrow", "batch.jsonl"])
def test_a_file_is_read_on_from_any_row_to_any_other(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "in.parquet":
        pq.write_table(pa.table({"prompt": [f"row {i}" for i in range(9)]}), path, row_group_size=4)
    elif name == "in.arrow":
        table = pa.table({"prompt": [f"row {i}" for i in range(9)]})
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    elif name == "batch.jsonl":
        line = {"method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}
        written(path, "", *(json.dumps({"custom_id": f"é{i}"} | line) for i in range(5)), "cut", "")
    elif name == "in.csv":
        written(path, "\ufeffid,prompt", 'a,"two\nlines"', "", "b,x", "c,y,z", '"d","e"', "f,g")
    elif name == "in.jsonl":
        written(path, "\ufeff" + '{"prompt": "é"}', "", "  ", '{"prompt": "b"}', "cut", "", '{"prompt": "c"}', "")
    else:
        written(path, "one", "", "two", "\r", "three\r", "four")
    (file,) = find_input_files([str(path)])
    rows = list(placed_rows(file, Columns()))
    assert len(rows) >= 4
    for at, placed in enumerate(rows):
        rest = replace(file, begin=placed.place.end, first=placed.place.number + 1)
        assert list(placed_rows(rest, Columns())) == rows[at + 1 :]
        head = replace(file, end=placed.place.end)
        assert list(placed_rows(head, Columns())) == rows[: at + 1]
    begins = [0, *(placed.place.end for placed in rows[:-1])]
    assert [placed.place.begin for placed in rows] == begins
    assert file_end(file) - rows[-1].place.end <= 1  # what may be left is a line's end


def test_a_template_makes_the_prompt_of_columns(tmp_path: Path) -> None:
    written(
        tmp_path / "in.jsonl",
        '{"id": "a", "q": "Why?", "n": 3, "messages": []}',
        '{"id": "b", "q": "How?"}',
        '{"id": "c", "q": "\\ud800", "n": 1}',
    )
    (file,) = find_input_files([str(tmp_path / "in.jsonl")])
    rows = list(read_rows(file, Columns(template=PromptTemplate(text="{n}: {q}"))))
    assert rows[0] == InputRow(id="a", prompt="3: Why?")
    assert rows[1].error == "no value in column 'n' of the template; the row has: id, q"
    assert "not valid UTF-8" in (rows[2].error or "")


@pytest.mark.parametrize(
    ("line", "row_id", "error"),
    [
        ({"custom_id": None}, "in.jsonl:2", "no value in custom_id; the row has: custom_id, method, url, body"),
        ({"custom_id": 7}, "in.jsonl:2", "custom_id is 7; it must be text"),
        ({"method": "GET"}, "x", 'method is "GET"; it must be POST'),
        ({"url": "/v1/embeddings"}, "x", 'url is "/v1/embeddings"; read are /v1/chat/completions, /v1/completions'),
        ({"body": "hello"}, "x", 'body is "hello"; it must be an object'),
        ({"body": {"prompt": "\ud800"}}, "x", "column 'body' holds what is not valid UTF-8"),
    ],
)
def test_a_bad_line_of_a_batch_is_an_error_in_its_row(tmp_path: Path, line: dict, row_id: str, error: str) -> None:
    good = {"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "é"}}
    path = written(tmp_path / "in.jsonl", json.dumps(good), json.dumps(good | line), "cut", json.dumps(good))
    first, bad, cut, last = read(path)
    assert json.loads(json.loads(first.request or "")["body"]) == good["body"]
    assert (bad.id, bad.error) == (row_id, error)
    assert (cut.id, last) == ("in.jsonl:3", first)
