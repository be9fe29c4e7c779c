"""Calls with tagged arguments: where a value ends, and what surrounds it."""

from __future__ import annotations

from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.markup import Markup, plain
from llamafactory.rendering.tagged_calls import Tags, read_calls, write_call

TAGS = Tags(name=("<f=", ">"), key=("<p=", ">"), value=("", "</p>"), end="</f>")
LINES = Tags(name=("<f=", ">"), key=("<p=", ">"), value=("\n", "\n</p>"), end="</f>")
BLOCK = ("<call>", "</call>")


def test_only_tags_are_markup() -> None:
    fragments = write_call(ToolCall("f", {"a": "</p>", "b": [1]}), TAGS)
    assert [part for part in fragments if not isinstance(part, Markup)] == ["f", "a", "</p>", "b", "[1]"]
    assert plain(fragments) == "<f=f>\n<p=a></p></p>\n<p=b>[1]</p>\n</f>"


def test_a_value_ends_at_the_closing_tag_that_another_tag_follows() -> None:
    text = "<call><f=g><p=a>x</p>y</f><p=b>z</p>\n<p=b>2</p></f></call>"
    assert read_calls(text, BLOCK, TAGS) == [ToolCall("g", {"a": "x</p>y</f><p=b>z", "b": 2})]
    assert read_calls("<call><f=g><p=a>x</p>y</f></call>", BLOCK, TAGS) is None


def test_line_breaks_of_the_tags_are_no_part_of_a_value() -> None:
    value = "\n x \n\n"
    text = f"<call>{plain(write_call(ToolCall('g', {'a': value}), LINES))}</call>"
    assert read_calls(text, BLOCK, LINES) == [ToolCall("g", {"a": value})]
    assert read_calls("<call><f=g><p=a>\nx\n</p></f></call>", BLOCK, TAGS) == [ToolCall("g", {"a": "\nx\n"})]


def test_one_broken_block_breaks_the_answer() -> None:
    good = "<call><f=g></f></call>"
    assert read_calls(good + " and " + good, BLOCK, TAGS) == [ToolCall("g", {})] * 2
    assert read_calls(good + "<call><f=g></f>", BLOCK, TAGS) is None
    assert read_calls("no call", BLOCK, TAGS) is None
