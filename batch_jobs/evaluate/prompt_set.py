"""The prompts whose greedy answers are compared: a file of the user's, or the 16 that ship; it answers none."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from batch_jobs.input_files import find_input_files
from batch_jobs.prompts import PromptEncoder
from batch_jobs.reading import Columns, read_rows
from cluster.errors import UserError

BUILT_IN = Path(__file__).with_name("prompts.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    name: str
    sha256: str
    """Of the file."""
    prompts: list[list[int]]
    """Token ids of each, with the model's chat template."""

    @property
    def longest(self) -> int:
        return max(map(len, self.prompts))


def read_prompts(path: Path | None, encoder: PromptEncoder) -> PromptSet:
    """Rows as `quantfleet generate` reads them; here a bad row is the user's mistake, not a row with an error."""
    if path is not None and not path.is_file():
        raise UserError(f"--prompts {path}: no such file; give a JSONL file of rows with a `prompt`")
    (file,) = find_input_files([str(path or BUILT_IN)])
    rows = list(encoder.encode_all(read_rows(file, Columns())))
    bad = next((row for row in rows if row.error is not None), None)
    if bad is not None:
        raise UserError(f"--prompts {file.source.path}: row {bad.id}: {bad.error}")
    if not rows:
        raise UserError(f"--prompts {file.source.path}: no rows to read")
    digest = sha256(Path(file.source.path).read_bytes()).hexdigest()
    return PromptSet(
        name="built-in" if path is None else path.name, sha256=digest, prompts=[row.token_ids for row in rows]
    )
