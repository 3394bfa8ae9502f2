"""Text to tokens and back for one model: tokenizer, chat, streaming detokenizer; it knows no torch, no transformers."""

from __future__ import annotations

import codecs
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cluster.errors import UserError
from cluster.request import SamplingParams
from engine.chat_template import ChatTemplate, Message
from engine.token_bytes import TokenBytes


class TextCodec:
    """The tokenizer of a checkpoint folder (tokenizer.json) and its chat template."""

    def __init__(self, folder: str | Path) -> None:
        self._path = Path(folder) / "tokenizer.json"
        if not self._path.exists():
            raise UserError(f"{self._path} is missing: the model needs its tokenizer as tokenizer.json")
        text = self._path.read_text()
        data = json.loads(text)
        self._tokenizer = _plain(Tokenizer.from_str(text))
        self._special = {token["content"]: token for token in data["added_tokens"] if token["special"]}
        self._special_pattern = _pattern(self._special.values())
        self._chat = ChatTemplate(Path(folder))
        self.special_token_ids = frozenset(token["id"] for token in self._special.values())
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._bytes = TokenBytes(self._tokenizer, data["decoder"])

    def encode(self, text: str) -> list[int]:
        """A raw prompt as the tokenizer means it: with the begin token if it adds one, special tokens recognised."""
        return self._tokenizer.encode(text).ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The rendered chat, in which only the template's special tokens are; ValueError as ChatTemplate.render."""
        for message in messages:
            if self._special_pattern.search(message["role"]):
                raise ValueError(f"messages: role {message['role']!r} holds a special token of the model")
        if not any(self._special_pattern.search(message["content"]) for message in messages):
            return self._tokenizer.encode(self._chat.render(messages), add_special_tokens=False).ids
        return self._encode_guarded(messages)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        hidden = self.special_token_ids if skip_special_tokens else frozenset[int]()
        data = b"".join(self._bytes[token_id] for token_id in token_ids if token_id not in hidden)
        text = data.decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._bytes.text_starts_with_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text; it may be a part of a character."""
        return self._bytes[token_id]

    def decode_token(self, token_id: int) -> str:
        return self._bytes[token_id].decode("utf-8", errors="replace")

    def _encode_guarded(self, messages: Sequence[Message]) -> list[int]:
        """Special-token text in the messages is covered while the template renders, then encoded as ordinary text.

        Between two special tokens a tokenizer encodes each stretch by itself, so encoding the stretches one by one
        gives what the whole would give if it did not know the covered ones.
        """
        guard = _Guard(list(self._special), self._special_pattern)
        covered = [{**message, "content": guard.cover(message["content"])} for message in messages]
        token_ids: list[int] = []
        position = 0
        rendered = self._chat.render(covered)
        for match in self._special_pattern.finditer(rendered):
            token_ids += self._encode_literal(guard.uncover(rendered[position : match.start()]), position == 0)
            token_ids.append(self._special[match.group().strip()]["id"])
            position = match.end()
        return token_ids + self._encode_literal(guard.uncover(rendered[position:]), position == 0)

    def _encode_literal(self, text: str, opens: bool) -> list[int]:
        if not text:
            return []
        tokenizer = self._literal_opening if opens else self._literal_inner
        token_ids = tokenizer.encode(text, add_special_tokens=False).ids
        if self.special_token_ids.isdisjoint(token_ids):
            return token_ids
        # The model's own vocabulary holds them as whole pieces too (Unigram does); no single character is one.
        parts = [tokenizer, *[self._literal_inner] * (len(text) - 1)]
        encoded = zip(parts, text, strict=True)
        return [token for part, char in encoded for token in part.encode(char, add_special_tokens=False).ids]

    @cached_property
    def _literal_opening(self) -> Tokenizer:
        tokenizer = _plain(Tokenizer.from_file(str(self._path)))
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def _literal_inner(self) -> Tokenizer:
        """For a stretch inside the text: some metaspace tokenizers put their space before the opening one only."""
        data = json.loads(self._path.read_text())
        pre_tokenizer: dict[str, Any] = data.get("pre_tokenizer") or {}
        if pre_tokenizer.get("prepend_scheme") != "first":
            return self._literal_opening
        pre_tokenizer["prepend_scheme"] = "never"
        tokenizer = _plain(Tokenizer.from_str(json.dumps(data)))
        tokenizer.encode_special_tokens = True
        return tokenizer


class StreamDetokenizer:
    """Text of one request's output, token by token: never half a character, never what may become a stop string.

    The pieces do not depend on how the tokens are grouped into pushes. Output continues a prompt, so a leading space
    stays. The first `min_tokens` tokens are not searched for an end.
    """

    def __init__(
        self, codec: TextCodec, *, stop: Sequence[str] = (), stop_token_ids: Iterable[int] = (), min_tokens: int = 0
    ) -> None:
        self.stopped = False
        self._codec = codec
        self._stop = tuple(text for text in stop if text)
        self._stop_token_ids = frozenset(stop_token_ids)
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    @classmethod
    def for_request(cls, codec: TextCodec, sampling: SamplingParams) -> StreamDetokenizer:
        return cls(codec, stop=sampling.stop, stop_token_ids=sampling.stop_token_ids, min_tokens=sampling.min_tokens)

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens make certain."""
        return "".join(self._push_token(token_id) for token_id in token_ids)

    def finish(self) -> str:
        """What was held back, when no more tokens come; half a character becomes U+FFFD, as `decode` has it."""
        if self.stopped:
            return ""
        rest = self._held + self._utf8.decode(b"", final=True)
        self._held = ""
        return rest

    def _push_token(self, token_id: int) -> str:
        if self.stopped:
            return ""
        self._num_tokens += 1
        may_end = self._num_tokens > self._min_tokens
        if may_end and token_id in self._stop_token_ids:
            rest = self.finish()
            self.stopped = True
            return rest
        if token_id in self._codec.special_token_ids:
            return ""
        text = self._utf8.decode(self._codec.token_bytes(token_id))
        return self._release(text) if may_end and self._stop else text

    def _release(self, text: str) -> str:
        """Cuts at the stop string that ends first, else keeps back the longest end that may yet become one."""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


class _Guard:
    """Stand-ins for special-token text while a template handles it: private-use characters around a random number."""

    def __init__(self, specials: Sequence[str], pattern: re.Pattern[str]) -> None:
        nonce = secrets.token_hex(8)
        self._cover_of = {special: f"\ue000{nonce}.{index}\ue001" for index, special in enumerate(specials)}
        self._special_of = {cover: special for special, cover in self._cover_of.items()}
        self._pattern = pattern
        self._covers = re.compile(f"\ue000{nonce}" + r"\.\d+" + "\ue001")

    def cover(self, text: str) -> str:
        return self._pattern.sub(lambda match: match.group().replace(*self._swap(match.group().strip())), text)

    def uncover(self, text: str) -> str:
        return self._covers.sub(lambda match: self._special_of[match.group()], text)

    def _swap(self, special: str) -> tuple[str, str]:
        return special, self._cover_of[special]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, shorter than it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


def _pattern(tokens: Iterable[dict[str, Any]]) -> re.Pattern[str]:
    """Matches a special token with the white space it swallows; the longest where several begin at one place."""
    ordered = sorted(tokens, key=lambda token: len(token["content"]), reverse=True)
    swallow = {True: r"\s*", False: ""}
    choices = [swallow[token["lstrip"]] + re.escape(token["content"]) + swallow[token["rstrip"]] for token in ordered]
    return re.compile("|".join(choices) or "(?!)")


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """Some tokenizer.json carry the truncation and padding of a training run."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
