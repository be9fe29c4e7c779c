"""Answers taken apart: the same parts however the text was cut, for every tool format."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory.inference.answer_parts import AnswerReader, CallReader, FormatCalls, JsonCalls, NoCalls, ThoughtReader
from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.markup import plain
from llamafactory.rendering.tools import FORMATS, load_tool_format

WORDS = ("<think>", "</think>")
CALLS = [ToolCall("get_weather", {"city": "Paris", "days": [1, 2]}), ToolCall("get_time", {})]
TOOLS = [{"name": "get_weather"}, {"name": "get_time"}]


def read(
    pieces: list[str], calls: CallReader | None = None, *, words: tuple[str, str] | None = WORDS, begun: bool = False
) -> tuple[str, str, tuple[ToolCall, ...]]:
    reader = AnswerReader(ThoughtReader(words, begun=begun), calls or NoCalls())
    found = [*map(reader.push, pieces), reader.finish()]
    assert all(not piece.calls for piece in found[:-1])
    return "".join(piece.thought for piece in found), "".join(piece.text for piece in found), found[-1].calls


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("Yes.", "", "Yes."),
        ("<think>\nHm.\n\n</think>\n\nYes.\n", "Hm.", "Yes.\n"),
        (" \n<think>Hm.</think>Yes.", "Hm.", "Yes."),
        ("<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("<think>never ends </thin", "never ends </thin", ""),
        ("<thinking>", "", "<thinking>"),
        ("<thi", "", "<thi"),
        ("  ", "", "  "),
        ("A <think>b</think>", "", "A <think>b</think>"),
    ],
)
def test_thoughts(text: str, thought: str, answer: str) -> None:
    assert read([text]) == read(list(text)) == (thought, answer, ())
    assert read([text], words=None) == ("", text, ())


def test_thought_the_prompt_has_opened() -> None:
    assert read(list("Hm.\n</think>\nYes."), begun=True) == ("Hm.", "Yes.", ())


@pytest.mark.parametrize("name", FORMATS.names())
@pytest.mark.parametrize("calls", [CALLS, CALLS[:1]], ids=["two", "one"])
def test_calls_of_every_format(name: str, calls: list[ToolCall]) -> None:
    form = load_tool_format(name)
    text = plain(form.render_calls(calls))
    expected = form.parse_calls(text)
    assert expected is not None and [call.name for call in expected] == [call.name for call in calls]
    found = read(list(text), FormatCalls(form, TOOLS))
    assert found == read([text], FormatCalls(form, TOOLS)) == ("", "", tuple(expected))
    assert read(list(f"<think>\nHm.</think>\n\n{text}"), FormatCalls(form, TOOLS)) == ("Hm.", "", tuple(expected))


@pytest.mark.parametrize("name", [name for name in FORMATS.names() if load_tool_format(name).STARTS.anywhere])
def test_text_before_calls_is_shown_and_broken_calls_are_text(name: str) -> None:
    form = load_tool_format(name)
    calls = plain(form.render_calls(CALLS[:1]))
    found = read(list(f"Let me look.\n\n{calls}\nbye"), FormatCalls(form, TOOLS))
    assert found[:2] == ("", "Let me look.") and len(found[2]) == 1
    broken = f"Look: {calls[: len(calls) * 2 // 3]} "
    assert read(list(broken), FormatCalls(form, TOOLS)) == ("", broken, ())


@pytest.mark.parametrize(
    "text", ["", " ", "Hello\nthere", '{"a": 1}', "[1, 2]", "get_weather", "get_weather\nis a name", "["]
)
@pytest.mark.parametrize("name", FORMATS.names())
def test_what_only_begins_like_calls_is_text(name: str, text: str) -> None:
    assert read(list(text), FormatCalls(load_tool_format(name), TOOLS)) == ("", text, ())


def test_text_is_shown_as_soon_as_it_is_certain() -> None:
    reader = FormatCalls(load_tool_format("qwen"), TOOLS)
    assert [reader.push(text) for text in ("Hi ", "there", " <", "b> ", "<tool_", "call>", "x")] == [
        "Hi", " there", "", " <b>", "", "", "",
    ]  # fmt: skip
    assert reader.finish() == (" <tool_call>x", ())


def test_forced_calls() -> None:
    text = '[{"name": "a", "arguments": {"b": 1}}]'
    assert read(list(text), JsonCalls()) == ("", "", (ToolCall("a", {"b": 1}),))
    assert read([text[:-3]], JsonCalls()) == ("", text[:-3], ())


MARKS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "Action:",
    "Action Input:",
    "[",
    "{",
    '{"name": "f", ',
    "}",
)


@pytest.mark.parametrize("name", ["qwen", "default", "llama3", "glm4", "lfm2"])
@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.sampled_from((*MARKS, "get_time", "\n", " ", "<", "a", '"arguments": {}')), max_size=12),
    data=st.data(),
)
def test_cuts_change_nothing(name: str, parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    form = load_tool_format(name)
    whole = read([text], FormatCalls(form, TOOLS))
    assert read(pieces, FormatCalls(form, TOOLS)) == whole
    if not whole[2] and "<think>" not in text:
        assert whole == ("", text, ())


@pytest.mark.parametrize(
    ("unit", "name"),
    [
        ("<tool_call>", "qwen"),
        ("<tool_cal", "qwen"),
        ("<think>", "qwen"),
        (" ", "mistral"),
        ("[", "mistral"),
        ("\n", "glm4"),
    ],
)
def test_hostile_megabyte_is_read(unit: str, name: str) -> None:
    """Pieces of a few characters, one megabyte together: with work that grows with the square this would not end."""
    text = unit * (1_000_000 // len(unit))
    pieces = [text[start : start + 30] for start in range(0, len(text), 30)]
    thought, answer, calls = read(pieces, FormatCalls(load_tool_format(name), TOOLS))
    assert not calls and len(thought) + len(answer) >= len(text) - 30


def test_a_word_that_looks_like_a_number_stays_a_word_where_the_tool_says_so() -> None:
    schema = {"name": "get_time", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}
    form = load_tool_format("glm4_moe")
    text = form.render_calls([ToolCall("get_time", {"zone": "5"})])
    assert read(list(text), FormatCalls(form, [schema]))[2] == (ToolCall("get_time", {"zone": "5"}),)
