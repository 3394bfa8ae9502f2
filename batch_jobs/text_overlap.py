"""Whether two texts share a paragraph, by short hashes that say nothing of the texts; it knows no file and no tokens.

Quantising notes the hashes of what it was calibrated on, evaluating refuses a text that holds one of them: a variant
must not be measured on what it was fitted to.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from hashlib import sha256

MIN_CHARACTERS = 64
"""Of a paragraph: shorter ones (headings, captions) are equal by chance."""

WIDEST_WRAPPED_LINE = 160
"""Text is wrapped at 72 to 150 characters; a longer line is a paragraph by itself and not a part of one."""

HASH_DIGITS = 16
"""64 bits: two of a million paragraphs that differ are equal with a chance of 3e-8."""


def normalised(text: str) -> str:
    """Lower case, white space collapsed to single spaces, stripped: what does not change which text it is."""
    return " ".join(text.lower().split())


def paragraph_hashes(text: str) -> frozenset[str]:
    """16 hex digits (of sha256) for each normalised paragraph of 64 characters or more."""
    return frozenset(_hash(paragraph) for paragraph in _paragraphs(text))


def shared_paragraphs(text: str, hashes: Collection[str]) -> list[str]:
    """The normalised paragraphs of the text whose hashes are among these, in order."""
    known = frozenset(hashes)
    return [paragraph for paragraph in _paragraphs(text) if _hash(paragraph) in known]


def _paragraphs(text: str) -> Iterator[str]:
    """Between blank lines; where a line there is wider than wrapped ones are, each of its lines."""
    for block in re.split(r"\n[^\S\n]*\n", text.replace("\r\n", "\n")):
        lines = block.splitlines()
        is_wrapped = all(len(line.strip()) <= WIDEST_WRAPPED_LINE for line in lines)
        for paragraph in [block] if is_wrapped else lines:
            plain = normalised(paragraph)
            # Rulers and tables' frames are the same in every text: a paragraph is letters, mostly.
            if len(plain) >= MIN_CHARACTERS and 2 * sum(map(str.isalpha, plain)) >= len(plain):
                yield plain


def _hash(paragraph: str) -> str:
    return sha256(paragraph.encode("utf-8", errors="surrogatepass")).hexdigest()[:HASH_DIGITS]
