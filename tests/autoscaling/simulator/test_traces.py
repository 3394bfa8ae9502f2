"""Readers of the public trace formats, and what they say of a broken file."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoscaling.simulator.arrivals import TracedRequest
from autoscaling.simulator.traces import read_trace
from cluster.errors import UserError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01.009930+00:00,0,0
"""
BURST_GPT = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,1,2.1,ChatGPT,472,18,490,Conversation log
45,2,0.1,ChatGPT,1087,0,1087,Conversation log
118.5,3,9,GPT-4,417,276,693,API log
"""
MOONCAKE = """{"timestamp": 3000, "input_length": 1030, "output_length": 52, "hash_ids": [46, 47, 48]}

{"timestamp": 3500, "input_length": 6, "output_length": 1}
"""


def read(tmp_path: Path, text: str) -> list[TracedRequest]:
    path = tmp_path / "trace"
    path.write_text(text)
    return read_trace(path)


def test_azure(tmp_path: Path) -> None:
    first, second = read(tmp_path, AZURE)
    assert first == TracedRequest(0.0, 374, 44)
    assert second.at_s == pytest.approx(4.314579, abs=1e-6)
    assert read(tmp_path, AZURE_2024) == [TracedRequest(0.0, 2162, 5), TracedRequest(1.0, 1, 1)]


def test_burst_gpt_without_the_requests_that_failed(tmp_path: Path) -> None:
    assert read(tmp_path, BURST_GPT) == [TracedRequest(0.0, 472, 18), TracedRequest(113.5, 417, 276)]


def test_mooncake(tmp_path: Path) -> None:
    assert read(tmp_path, MOONCAKE) == [TracedRequest(0.0, 1030, 52, (46, 47, 48)), TracedRequest(0.5, 6, 1)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no requests in it"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests in it"),
        ("TIMESTAMP,ContextToken,GeneratedTokens\n", ":1: no column 'ContextTokens' of the Azure format; did you mean"),
        ("Timestamp,Model,Request tokens\n1,a,2\n", ":1: no column 'Response tokens' of the BurstGPT format"),
        (AZURE + "2023-11-16 18:15:00,1,2\n", ":4: 50.9952 s before the line above; sort the file by its time first"),
        (AZURE + "2023-11-16 18:16:00,-1,2\n", ":4: ContextTokens -1 is negative"),
        (AZURE + "2023-11-16 18:16:00,many,2\n", ":4: ContextTokens 'many' is no count of tokens; write an integer"),
        (AZURE + "yesterday,1,2\n", ":4: TIMESTAMP 'yesterday' is no time; write it as 2023-11-16"),
        (AZURE + "2023-11-16 18:16:00,1\n", ":4: 2 values for 3 columns; is the file cut off?"),
        (MOONCAKE + '{"timestamp": 4000', ":4: not a JSON object"),
        (MOONCAKE + '{"timestamp": 4000, "input_len": 1, "output_length": 2}', ":4: no 'input_length'"),
        (MOONCAKE + '{"timestamp": 1, "input_length": 1, "output_length": 2}', ":4: 3.499 s before the line above"),
        (MOONCAKE + '{"timestamp": 9e9, "input_length": -4, "output_length": 2}', ":4: input_length -4 is negative"),
    ],
)
def test_a_broken_trace_is_told_by_line_and_mend(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "trace"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_trace(tmp_path / "missing.csv")
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(UserError, match="not text; give an unpacked trace"):
        read_trace(tmp_path / "packed")
