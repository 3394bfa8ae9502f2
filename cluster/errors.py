"""UserError: a mistake of the user's, told in one line; it knows nothing of exit codes and HTTP statuses."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake of the user's; its text is one line that names the value, the place and the mend."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What to add to an error about an unknown word: the nearest known one, or all of them."""
    names = sorted(known)
    begun = [name for name in names if word and name.lower().startswith(word.lower())]
    near = begun or get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
