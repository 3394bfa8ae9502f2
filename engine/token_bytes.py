"""The bytes each token stands for, for byte-level BPE and for sentencepiece-style tokenizers; it encodes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer

from cluster.errors import UserError

METASPACE = "▁"


class TokenBytes:
    """token id -> bytes, worked out on first use; ids beyond the vocabulary (a padded embedding) stand for nothing."""

    def __init__(self, tokenizer: Tokenizer, decoder: Mapping[str, Any] | None) -> None:
        steps = list(_steps(decoder or {}))
        kinds = {step["type"] for step in steps}
        self._tokenizer = tokenizer
        self._byte_fallback = "ByteFallback" in kinds
        self._known: dict[int, bytes] = {}
        if "ByteLevel" in kinds:
            self._byte_of_char: Mapping[str, int] | None = _byte_level_alphabet()
        elif kinds & {"Metaspace", "ByteFallback"}:
            self._byte_of_char = None
        else:
            found = ", ".join(sorted(kinds)) or "none"
            raise UserError(f"tokenizer.json: decoder {found}; supported are byte-level and sentencepiece-style ones")
        self.text_starts_with_space = any(_drops_first_space(step) for step in steps)
        """A whole text begins with one space that is not part of it."""

    def __getitem__(self, token_id: int) -> bytes:
        data = self._known.get(token_id)
        if data is None:
            data = self._known[token_id] = self._work_out(self._tokenizer.id_to_token(token_id) or "")
        return data

    def _work_out(self, token: str) -> bytes:
        if self._byte_of_char is not None:
            # An added token may hold characters outside the alphabet (a space, say): then it is itself.
            if all(char in self._byte_of_char for char in token):
                return bytes(self._byte_of_char[char] for char in token)
            return token.encode()
        if self._byte_fallback and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return token.replace(METASPACE, " ").encode()


def _steps(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if decoder.get("type") == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    elif decoder:
        yield decoder


def _drops_first_space(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return bool(step.get("prepend_scheme", "always") != "never")
    return bool(step["type"] == "Strip" and step["content"] == " " and step["start"] > 0)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's: a printable byte stands for itself, the n-th of the others is character 256 + n."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
