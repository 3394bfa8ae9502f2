"""Paragraphs are found again whatever their case and wrapping, and nothing short or made of rulers counts."""

import textwrap

from batch_jobs.text_overlap import normalised, paragraph_hashes, shared_paragraphs

ONE = (
    "The lobster is a large crustacean of the eastern Atlantic, and its first pair of legs carries claws of two kinds."
)
TWO = "A second paragraph, which has nothing to do with the first one, is needed so that there is something left over."
LONG = " ".join([ONE, TWO])


def test_case_and_white_space_change_nothing() -> None:
    assert normalised("  The\tQuick \n Fox ") == "the quick fox"
    assert paragraph_hashes(ONE) == paragraph_hashes(f"\n\n  {ONE.upper()}\r\n\r\n")
    assert all(len(digits) == 16 and int(digits, 16) >= 0 for digits in paragraph_hashes(f"{ONE}\n\n{TWO}"))
    assert len(paragraph_hashes(f"{ONE}\n\n{TWO}")) == 2


def test_a_paragraph_is_found_again_however_it_is_wrapped() -> None:
    wrapped = "\n".join(textwrap.wrap(LONG, 79))
    assert paragraph_hashes(wrapped) == paragraph_hashes(LONG)
    assert shared_paragraphs(f"Heading\n\n{wrapped}\n \nOther text.", paragraph_hashes(LONG)) == [normalised(LONG)]


def test_lines_too_wide_to_be_wrapped_are_paragraphs_of_their_own() -> None:
    """A text with a paragraph a line, as WikiText has them, is recognised from any of its lines."""
    lines = f"{LONG}\n{TWO} {LONG}\n"
    assert len(paragraph_hashes(lines)) == 2
    assert shared_paragraphs(f"{LONG}\nMore of it, on a line by itself.", paragraph_hashes(lines)) == [normalised(LONG)]


def test_what_is_equal_by_chance_does_not_count() -> None:
    assert paragraph_hashes("= Heading =\n\nA caption.\n\n" + "=" * 100 + "\n\n" + "| 1 | 2 " * 20) == frozenset()
    assert shared_paragraphs(ONE, paragraph_hashes(TWO)) == []
    assert len(paragraph_hashes("x" * 64)) == 1
    assert len(paragraph_hashes("x" * 63)) == 0
