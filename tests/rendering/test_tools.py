"""Tool formats: exact texts, their own output read back, vendors' variants, broken and hostile text."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from llamafactory.errors import ConfigError
from llamafactory.rendering.calls import ToolCall, dump
from llamafactory.rendering.markup import Markup, plain
from llamafactory.rendering.tools import FORMATS, load_tool_format

EXPECTED = json.loads((Path(__file__).parent / "data" / "tool_texts.json").read_text(encoding="utf-8"))
CALLS = {
    name: [ToolCall(call["name"], call["arguments"]) for call in calls] for name, calls in EXPECTED["calls"].items()
}
PROMPTS = [
    (name, toolset, text)
    for name, item in EXPECTED["formats"].items()
    for toolset, text in item["tools_prompt"].items()
]
WRITTEN = [(name, calls, text) for name, item in EXPECTED["formats"].items() for calls, text in item["call"].items()]
NAMES = FORMATS.names()


@pytest.mark.parametrize(("name", "toolset", "text"), PROMPTS)
def test_tools_are_described_in_the_exact_words(name: str, toolset: str, text: str) -> None:
    written = load_tool_format(name).render_tools(EXPECTED["toolsets"][toolset], EXPECTED["date"])
    assert plain(written) == text


@pytest.mark.parametrize(("name", "calls", "text"), WRITTEN)
def test_calls_are_written_in_the_exact_form(name: str, calls: str, text: str) -> None:
    assert plain(load_tool_format(name).render_calls(CALLS[calls])) == text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("calls", list(CALLS))
def test_a_format_reads_what_it_writes(name: str, calls: str) -> None:
    tool_format = load_tool_format(name)
    assert tool_format.parse_calls(plain(tool_format.render_calls(CALLS[calls]))) == CALLS[calls]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("qwen", 'Sure.\n<tool_call>\n{"name": "f", "arguments": "{\\"a\\": 1}"}\n</tool_call>', [("f", {"a": 1})]),
        (
            "qwen",
            '<tool_call>{"name":"f","arguments":{}}</tool_call><tool_call>{"name":"g"}</tool_call>',
            [("f", {}), ("g", {})],
        ),
        ("default", 'Thought: yes\nAction: f\nAction Input: {"a": 1}', [("f", {"a": 1})]),
        ("llama3", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}', [("f", {"a": 1})]),
        ("llama3", '[{"name": "f", "parameters": {}}, {"name": "g", "parameters": {}}]', [("f", {}), ("g", {})]),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', [("f", {"a": 1})]),
        ("mistral", '{"name": "f", "arguments": {"a": 1}}', [("f", {"a": 1})]),
        ("glm4", 'f\n{"a": 1}', [("f", {"a": 1})]),
    ],
)
def test_variants_models_write_are_read(name: str, text: str, expected: list[tuple[str, dict[str, object]]]) -> None:
    found = load_tool_format(name).parse_calls(text)
    assert [(call.name, dict(call.arguments)) for call in found or []] == expected


BROKEN = [
    "", "Just an answer.", "<tool_call>\n{bad}\n</tool_call>", '<tool_call>{"name": "f", "arguments": {}}',
    "<tool_call>",
    '<tool_call>{"name": 1, "arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>',
    "Action: f\nAction Input: {bad", "Action: f", "Action:", "Action: f\nAction Input: [1]", "Action Input: {}",
    '{"name": "f"', '[{"name": "f", "parameters": {}}, 3]', '{"name": "f", "parameters": {}} and more', "[]", "{}",
    "null",
    "f\nnot json", "f\n[1]", "two words\n{}", "f", '{"name": "f", "parameters": "x"}', '[TOOL_CALLS]',
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", BROKEN)
def test_broken_calls_are_no_calls(name: str, text: str) -> None:
    assert load_tool_format(name).parse_calls(text) is None


HOSTILE = (
    "<tool_call>", '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "<tool_call>{",
    "Action: a\nAction Input: {} ",
    "Action:", "[", "{", '{"a":', "f\n{}", "\n", " ", "<tool_call>\n<function=f>\n", "<parameter=a>", "[TOOL_CALLS]",
    "<invoke name=", "call:f{", '<|"|>', "<arg_key>", "f(a=", "<|tool_call_start|>[", "</tool_call>",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_megabyte_of_hostile_text_is_read_in_linear_time(name: str) -> None:
    parse = load_tool_format(name).parse_calls
    for unit in HOSTILE:
        text = unit * (1_000_000 // len(unit))
        start = time.process_time()
        parse(text)
        assert time.process_time() - start < 20.0, unit  # quadratic work takes minutes


def test_data_in_calls_is_never_markup() -> None:
    """Arguments and schemas may spell a control token; only the format's own words are markup."""
    hostile = "<tool_call></tool_call>[/AVAILABLE_TOOLS]"
    schema = {"name": "f", "description": hostile, "parameters": {"type": "object", "properties": {}}}
    for name in NAMES:
        tool_format = load_tool_format(name)
        for fragments in (
            tool_format.render_tools([schema], "d"),
            tool_format.render_calls([ToolCall("f", {"a": hostile})]),
        ):
            assert not any(isinstance(part, Markup) and hostile in part for part in fragments)
            assert any(hostile in part for part in fragments)


def test_an_unknown_format_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"tool_format: 'qwem' is not available.*did you mean 'qwen'"):
        load_tool_format("qwem")


def test_json_keeps_other_scripts_readable() -> None:
    assert dump({"城市": "北京"}) == '{"城市": "北京"}'
