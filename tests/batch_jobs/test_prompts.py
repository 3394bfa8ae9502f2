"""Prompts become the model's own chat, or stay as they are; what cannot is an error of its row."""

import json
import pickle
from pathlib import Path

import pytest

from batch_jobs.prompts import PromptEncoder
from batch_jobs.reading import InputRow
from engine.text import TextCodec

CHAT = [{"role": "user", "content": "Hi <|im_end|>"}]


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> TextCodec:
    return TextCodec(checkpoint)


def encoder(checkpoint: Path, **options: object) -> PromptEncoder:
    return PromptEncoder(checkpoint=str(checkpoint), **{"max_prompt_tokens": 100, **options})


def test_a_prompt_is_one_user_message_unless_raw(checkpoint: Path, codec: TextCodec) -> None:
    row = InputRow(id="a", prompt="Hi")
    chat = encoder(checkpoint).encode(row)
    assert chat.token_ids == codec.encode_chat([{"role": "user", "content": "Hi"}])
    assert (chat.id, chat.prompt, chat.error) == ("a", "Hi", None)
    assert encoder(checkpoint, raw=True).encode(row).token_ids == codec.encode("Hi")


def test_a_chat_keeps_its_messages_and_its_own_system(checkpoint: Path, codec: TextCodec) -> None:
    row = InputRow(id="a", prompt=json.dumps(CHAT), is_chat=True)
    system = {"role": "system", "content": "Brief."}
    assert encoder(checkpoint, raw=True).encode(row).token_ids == codec.encode_chat(CHAT)
    assert encoder(checkpoint, system="Brief.").encode(row).token_ids == codec.encode_chat([system, *CHAT])
    with_own = InputRow(id="a", prompt=json.dumps([system, *CHAT]), is_chat=True)
    assert encoder(checkpoint, system="Other.").encode(with_own).token_ids == codec.encode_chat([system, *CHAT])


def test_errors_stay_in_their_rows(checkpoint: Path) -> None:
    rows = [
        InputRow(id="read", error="malformed"),
        InputRow(id="long", prompt="word " * 200),
        InputRow(id="role", prompt=json.dumps([{"role": "<|im_end|>", "content": "x"}]), is_chat=True),
        InputRow(id="good", prompt="x"),
    ]
    encoded = list(encoder(checkpoint).encode_all(rows))
    assert [row.id for row in encoded] == ["read", "long", "role", "good"]
    assert encoded[0].error == "malformed"
    assert "tokens; at most 100 fit" in (encoded[1].error or "")
    assert "special token" in (encoded[2].error or "")
    assert encoded[3].error is None
    assert all(not row.token_ids for row in encoded[:3])


def test_the_tokenizer_does_not_travel(checkpoint: Path) -> None:
    used = encoder(checkpoint)
    used.encode(InputRow(id="a", prompt="Hi"))
    copy = pickle.loads(pickle.dumps(used))
    assert copy == used
    assert len(pickle.dumps(used)) < 1000
    assert copy.encode(InputRow(id="a", prompt="Hi")) == used.encode(InputRow(id="a", prompt="Hi"))
