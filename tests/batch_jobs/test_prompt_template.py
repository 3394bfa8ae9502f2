"""Templates fill in columns by name, and say in one line what they cannot mean."""

from pathlib import Path

import pytest

from batch_jobs.prompt_template import PromptTemplate
from cluster.errors import UserError


def test_columns_are_filled_in_by_name() -> None:
    record = {"question": "Why {x}?", "n": 2, "ok": True, "a.b": "dot", "choices": ["é", 1], "two words": 0.5}
    template = PromptTemplate(text="{{{question}}} {n} {ok} {a.b} {choices} {two words}")
    assert template.fill(record) == '{Why {x}?} 2 true dot ["é", 1] 0.5'


def test_a_missing_value_names_its_column() -> None:
    with pytest.raises(ValueError, match=r"no value in column 'b' of the template; the row has: a, b"):
        PromptTemplate(text="{a}{b}").fill({"a": "", "b": None})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{question", "expected '}' before end of string; a brace"),
        ("question}", "Single '}' encountered"),
        ("{}", "{} is no column's name alone"),
        ("{q!r}", "{q!r} is no column's name alone"),
        ("{q:>{n}}", "{q:>{n}} is no column's name alone"),
        ("no {{column}}", "names no column"),
    ],
)
def test_what_is_no_column_is_refused(text: str, error: str) -> None:
    with pytest.raises(UserError) as raised:
        PromptTemplate(text=text)
    assert error in str(raised.value)
    assert str(raised.value).startswith("--template: ")


def test_the_option_is_a_text_or_a_file(tmp_path: Path) -> None:
    assert PromptTemplate.of_option(r"Q: {q}\nA:\t\\n").text == "Q: {q}\nA:\t\\n"
    (tmp_path / "t.txt").write_text("Q: {q}\\n\n\n")
    assert PromptTemplate.of_option(f"@{tmp_path / 't.txt'}").text == "Q: {q}\\n\n"
    with pytest.raises(UserError, match="cannot be read"):
        PromptTemplate.of_option(f"@{tmp_path / 'missing.txt'}")
