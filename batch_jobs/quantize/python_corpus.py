"""Prose found on any Python installation, as a calibration text; it imports none of what it reads.

The licence, the language reference that `help()` shows (pydoc_data/topics.py), and the docstrings of the standard
library's modules (not of its packages: 800,000 characters are enough), paragraphs of running text only. It is the same
text wherever the same Python is installed; a text of the kind that the model will see is a better one.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

MIN_WORDS = 12
MIN_LETTERS = 0.75
"""Of a paragraph's characters, spaces aside: below it stands code, a table or a list of names."""
TOPICS = Path("pydoc_data/topics.py")
SENTENCE_ENDS = (".", ":", "!", "?")


def python_corpus() -> str:
    """Paragraphs, each once, with a blank line between; in the order of file names."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    seen: dict[str, None] = {}
    for text in _texts(folder):
        for paragraph in dedent(text).split("\n\n"):
            line = " ".join(paragraph.split())
            if _is_prose(paragraph, line):
                seen.setdefault(line)
    return "\n\n".join(seen) + "\n"


def _texts(folder: Path) -> Iterator[str]:
    licence = folder / "LICENSE.txt"
    if licence.exists():
        yield licence.read_text(encoding="utf-8", errors="replace")
    for path in (folder / TOPICS, *sorted(folder.glob("*.py"))):
        yield from _strings(path)


def _strings(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_bytes())
    if path.parts[-2:] == TOPICS.parts:
        yield from (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and _is_long(node.value))
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node, clean=True) or ""


def _is_long(value: object) -> bool:
    return isinstance(value, str) and len(value) > 200


def _is_prose(paragraph: str, line: str) -> bool:
    """Running text: words that end as a sentence does, letters mostly, no prompt of the interpreter."""
    words = line.split()
    characters = line.replace(" ", "")
    return (
        len(words) >= MIN_WORDS
        and line.endswith(SENTENCE_ENDS)
        and not paragraph.startswith("    ")
        and ">>>" not in line
        and sum(map(str.isalpha, characters)) >= MIN_LETTERS * len(characters)
    )
