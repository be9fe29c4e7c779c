"""Values in text: JSON, Python's spelling, limits, and what is refused."""

from __future__ import annotations

import ast
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory.rendering.literals import (
    MAX_DEPTH,
    json_or_text,
    literal_or_text,
    read_quoted,
    read_value,
    unescape,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(VALUES)
def test_json_and_python_literals_are_read(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value, indent=1), repr(value)):
        assert read_value(text, 0) == (value, len(text))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(max_size=12))
def test_escapes_mean_what_they_mean_in_python(text: str) -> None:
    for written in (repr(text), ascii(text)):
        assert read_quoted(written, 0) == (ast.literal_eval(written), len(written))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "[",
        "[1",
        "[1,]",
        "[1 2]",
        "{",
        "{1: 2}",
        "{'a'}",
        "{'a': }",
        "'a",
        "-",
        ".5",
        "nan",
        "(1, 2)",
        "f()",
        "TRUE",
    ],
)
def test_what_is_no_value_is_refused(text: str) -> None:
    assert read_value(text, 0) is None


def test_the_depth_is_limited() -> None:
    assert read_value("[" * MAX_DEPTH + "]" * MAX_DEPTH, 0) is not None
    assert read_value("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), 0) is None


def test_numbers_too_long_for_an_integer_are_refused() -> None:
    assert read_value("9" * 5000, 0) is None
    assert json_or_text("9" * 5000) == "9" * 5000


def test_text_stays_text_unless_it_is_a_value() -> None:
    assert [json_or_text(text) for text in ("1", " [1] ", "True", '"a"', "NaN", "1 2")] == [
        1,
        [1],
        "True",
        '"a"',
        "NaN",
        "1 2",
    ]
    assert [literal_or_text(text) for text in ("True", "{'a': None}", "'a'", "True!")] == [
        True,
        {"a": None},
        "'a'",
        "True!",
    ]


def test_an_unknown_escape_stays() -> None:
    assert unescape(r"\d \/ \u12 \U00110000 \x4") == r"\d \/ \u12 \U00110000 \x4"
