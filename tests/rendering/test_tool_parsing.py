"""Every tool format: it reads what it writes whatever the arguments hold, its Jinja writes the same, in linear time."""

from __future__ import annotations

import functools
import gc
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.markup import plain
from llamafactory.rendering.records import Conversation, Message
from llamafactory.rendering.renderer import Renderer
from llamafactory.rendering.sandbox import ChatTemplate
from llamafactory.rendering.tools import FORMATS, load_tool_format

NAMES = FORMATS.names()
DATE = "15 Jan 2025"
Build = Callable[..., Renderer]

MARKERS = (
    "<tool_call>", "</tool_call>", "<function=f>", "</function>", "<parameter=a>", "</parameter>", "\n</parameter>\n",
    "<arg_key>", "</arg_value>", '<invoke name="f">', "</invoke>", "<minimax:tool_call>", "</seed:tool_call>",
    "<tool_calls>", "</tool_calls>", "Action: f\nAction Input: {}", "<|assistant|>", "[TOOL_CALLS]", "<|python_tag|>",
    "<|tool_call_start|>[", "]<|tool_call_end|>", "<|tool_call>call:f{", "}<tool_call|>", '<|"|', "<|tool_call|>",
    '"', "'", "\\", "\\n", '", b="', '")', '"}', ",", ")", "\n", "\r\n", "\t", " ", "表", "🙂", "{", "}", "[", "]", ":",
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=12), st.lists(st.sampled_from(MARKERS), max_size=6).map("".join))
WORDS = st.from_regex(r"[A-Za-z_城][A-Za-z0-9_市-]{0,8}", fullmatch=True)
FUNCTIONS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,12}", fullmatch=True)


def values(texts: st.SearchStrategy[str], keys: st.SearchStrategy[str]) -> st.SearchStrategy[object]:
    """JSON values with texts and keys of a kind."""
    numbers = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
    return st.recursive(
        st.none() | st.booleans() | numbers | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=5,
    )


def calls(keys: st.SearchStrategy[str], items: st.SearchStrategy[object]) -> st.SearchStrategy[list[ToolCall]]:
    """One to three calls made at once."""
    return st.lists(st.builds(ToolCall, FUNCTIONS, st.dictionaries(keys, items, max_size=4)), min_size=1, max_size=3)


def spells_a_value(text: str) -> bool:
    """Whether text written without quotes would be read as something else."""
    if text.strip() in ("True", "False", "None") or text.strip()[:1] in ("[", "{"):
        return True
    try:
        return not isinstance(json.loads(text), str)
    except ValueError:
        return False


def tagged(closing: str, following: str) -> st.SearchStrategy[list[ToolCall]]:
    """Calls whose arguments stand between tags: no text that spells a value, or a closing tag and the next one."""
    border = re.compile(closing + r"\s*" + following)
    inner = TEXTS.filter(lambda text: not border.search(text))
    others = values(inner, inner).filter(lambda value: not isinstance(value, str))
    keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='<>"\n'), min_size=1, max_size=8)
    return calls(keys, inner.filter(lambda text: not spells_a_value(text)) | others)


JSON_CALLS = calls(TEXTS, values(TEXTS, TEXTS))
CALLS: Mapping[str, st.SearchStrategy[list[ToolCall]]] = {
    "qwen3_5": tagged("</parameter>", "(<parameter=|</function>)"),
    "seed_oss": tagged("</parameter>", "(<parameter=|</function>)"),
    "minimax2": tagged("</parameter>", '(<parameter name="|</invoke>)'),
    "glm4_moe": tagged("</arg_value>", "(<arg_key>|</tool_call>)"),
    "lfm2": calls(WORDS, values(TEXTS, TEXTS)),
    "gemma4": calls(WORDS, values(TEXTS.filter(lambda text: '<|"|>' not in text), WORDS)),
}
"""What a format cannot carry is left out here, and said in the format's own words."""


def comparable(found: Sequence[ToolCall] | None) -> list[tuple[str, str]] | None:
    return None if found is None else [(call.name, json.dumps(call.arguments, sort_keys=True)) for call in found]


@functools.cache
def jinja(source: str) -> ChatTemplate:
    return ChatTemplate(source, date=DATE)


@pytest.mark.parametrize("name", NAMES)
def test_a_format_reads_any_calls_it_writes_and_its_jinja_writes_the_same(name: str) -> None:
    tool_format = load_tool_format(name)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(CALLS.get(name, JSON_CALLS))
    def check(made: list[ToolCall]) -> None:
        text = plain(tool_format.render_calls(made))
        assert comparable(tool_format.parse_calls(text)) == comparable(made)
        written = [{"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in made]
        assert jinja(tool_format.CALLS_JINJA).render({"calls": written}) == text

    check()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=st.lists(st.one_of(st.sampled_from(MARKERS), st.text(max_size=4)), max_size=30).map("".join))
def test_any_text_is_calls_or_none(name: str, text: str) -> None:
    found = load_tool_format(name).parse_calls(text)
    assert found is None or (found and all(call.name for call in found))


TOOLSETS: Mapping[str, list[Mapping[str, object]]] = {
    "none of the optional parts": [{"name": "f"}],
    "no properties": [{"name": "f", "description": 'It\'s "f"\n', "parameters": {"type": "object", "properties": {}}}],
    "wrapped and bare": [
        {"type": "function", "function": {"name": "f", "description": "表", "parameters": {"type": "object"}}},
        {
            "name": "g",
            "description": "",
            "parameters": {
                "type": "object",
                "required": ["a", "b"],
                "properties": {
                    "a": {"type": "string", "description": "A", "enum": ["x", "y"], "nullable": True},
                    "b": {"type": "array", "items": {"type": "integer"}},
                    "c": {"type": ["string", "null"]},
                    "d": {"type": "object", "properties": {"e": {"type": "number"}}, "required": ["e"]},
                    "h": {"properties": {"i": {}}},
                },
            },
        },
    ],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("toolset", list(TOOLSETS))
def test_the_jinja_of_a_format_describes_tools_in_the_same_words(name: str, toolset: str) -> None:
    if name == "default" and toolset == "wrapped and bare":
        pytest.skip("the default format prints a list of types as each language does")
    tool_format = load_tool_format(name)
    text = plain(tool_format.render_tools(TOOLSETS[toolset], DATE))
    variables = {"tools": TOOLSETS[toolset], "date_string": DATE}
    assert jinja(tool_format.TOOLS_JINJA).render(variables) == text
    assert plain(tool_format.render_tools(TOOLSETS[toolset], "another day")) == text.replace(DATE, "another day")


@pytest.mark.parametrize("name", ["qwen3_5", "glm4_moe", "minimax2", "seed_oss", "lfm2", "gemma4"])
def test_jinja_that_takes_arguments_apart_refuses_their_json_text(name: str) -> None:
    written = [{"function": {"name": "f", "arguments": '{"a": 1}'}}]
    with pytest.raises(Exception, match="must be an object"):
        jinja(load_tool_format(name).CALLS_JINJA).render({"calls": written})


LFM2, GEMMA = "<|tool_call_start|>[", "<|tool_call>call:f{"
QWEN = "<tool_call>\n"
XML, SEED = "<tool_call>\n<function=f>\n<parameter=a>\n", "<seed:tool_call><function=f>"
MINIMAX, GLM = '<minimax:tool_call><invoke name="f">', "<tool_call>f"
HOSTILE: Mapping[str, Sequence[tuple[str, str]]] = {
    "default": [("Action: f\nAction Input: ", '{"a":'), ("", "Action: f\nAction Input: {}\n"), ("Action: ", "f ")],
    "glm4": [("f\n", "["), ("", "f\n{}\n"), ("f\n{}", " ")],
    "llama3": [("", '{"name":'), ("[", '{"name": "f", "parameters": {}},'), ('{"name": "', '\\"')],
    "mistral": [("[TOOL_CALLS]", "["), ("[", '{"name": "f", "arguments": {}},'), ('[{"name": "', '\\"')],
    "qwen": [(QWEN, '{"a":'), ("", QWEN + '{"name": "f"}\n</tool_call>'), (QWEN + '{"name": "', '\\"'), (QWEN, " ")],
    "ling": [(QWEN, '{"a":'), ("", QWEN + '{"name": "f"}\n</tool_call>'), (QWEN + '{"name": "', '\\"'), (QWEN, " ")],
    "minimax1": [
        ("<tool_calls>", '{"name": "f"}\n'), ("<tool_calls>", '{"a":'), ("", "<tool_calls>"),
        ("", "<tool_calls></tool_calls>"), ('<tool_calls>{"name": "', '\\"'),
    ],
    "qwen3_5": [
        (XML, "</parameter>"), (XML, "</parameter>\n "), (XML, "1</parameter><parameter=a>"), (XML, "["), (XML, "1"),
        (XML, "{'a':"), ("<tool_call><function=", "f"), ("<tool_call><function=f>\n<parameter=", "a"), (XML, "\n"),
        ("", "<tool_call><function=f></function></tool_call>"), ("<tool_call>", "<function=f></function>"),
    ],
    "seed_oss": [
        (SEED + "<parameter=a>", "</parameter>"), (SEED, "<parameter=a>"), (SEED + "<parameter=a>", "'\\"),
        ("<seed:tool_call>", "<function=f></function>"), ("", "<seed:tool_call>"), (SEED, " "),
    ],
    "minimax2": [
        (MINIMAX + '<parameter name="a">', "</parameter> "), ("<minimax:tool_call>", '<invoke name="f"></invoke>'),
        ("", "<minimax:tool_call>"), ('<minimax:tool_call><invoke name="', "f"), (MINIMAX, '<parameter name="'),
    ],
    "glm4_moe": [
        (GLM + "<arg_key>a</arg_key><arg_value>", "</arg_value>"), (GLM, "\n"), ("", GLM + "</tool_call>"), (GLM, "f"),
        (GLM, "<arg_key>a</arg_key><arg_value>1</arg_value>"), (GLM + "<arg_key>", "a"),
        (GLM + "<arg_key>a</arg_key>", " "),
    ],
    "lfm2": [
        (LFM2, "f(),"), (LFM2 + "f(", "a=1,"), (LFM2 + "f(a=", "["), (LFM2 + "f(a=", "{'a':"), (LFM2 + 'f(a="', '"'),
        (LFM2 + 'f(a="', '" '), (LFM2 + 'f(a="', "\\"), (LFM2 + 'f(a="', "\\u0041"), (LFM2 + "f(a=[", '"x",'),
        (LFM2 + "f(a=", "1"), (LFM2, "f"), ("", LFM2 + "f()]<|tool_call_end|>"), ("[", "f(a='"),
        (LFM2 + "f(a={", "'a': [1], "), (LFM2 + "f(a", " "),
    ],
    "gemma4": [
        (GEMMA, "a:{"), (GEMMA, "a:1,"), (GEMMA + "a:", "["), (GEMMA + 'a:<|"|>', '<|"|'), (GEMMA, "a"), (GEMMA, " "),
        (GEMMA + "a:[", '<|"|>x<|"|>,'), ("", GEMMA + "}<tool_call|>"), ("", GEMMA), ("<|tool_call>call:", "f"),
        (GEMMA + "a:", "1"), (GEMMA, '<|"|>'),
    ],
    "phi4_mini": [
        ("<|tool_call|>", "["), ("", '<|tool_call|>{"name": "f"}<|/tool_call|>'), ("", "<|tool_call|>"),
        ("", "Action: "),
    ],
}  # fmt: skip
ENOUGH_SECONDS = 0.3
"""Readings this short are too noisy to compare, and fast enough."""


def parse_seconds(name: str, text: str) -> float:
    parse = load_tool_format(name).parse_calls
    gc.disable()
    try:
        start = time.process_time()
        parse(text)
        return time.process_time() - start
    finally:
        gc.enable()


def test_every_format_has_hostile_text_of_its_own() -> None:
    assert sorted(HOSTILE) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_megabyte_of_hostile_text_takes_linear_time(name: str) -> None:
    """Sixteen times the text: 16 times the work when it is linear, 256 times when it is quadratic."""
    for prefix, unit in HOSTILE[name]:
        part = 1_000_000 // len(unit) // 16
        whole = parse_seconds(name, prefix + unit * (16 * part))
        if whole > ENOUGH_SECONDS:
            assert whole <= 64 * parse_seconds(name, prefix + unit * part), (prefix, unit)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_another_tool_format_keeps_the_templates_suffix(name: str, render_with: Build) -> None:
    """Two calls at once, arguments as JSON text and as an object, two results in a row."""
    renderer = render_with("llama3", tool_format=name)
    content = (
        '[{"name": "f", "arguments": "{\\"city\\": \\"北京\\"}"}, {"name": "g", "arguments": {"n": [1, {"z": null}]}}]'
    )
    head = (Message("user", "go"), Message("function", content))
    text = renderer.text(Conversation(head))
    assert text.endswith("<|eot_id|>")
    answer = text.rpartition("<|end_header_id|>\n\n")[2].removesuffix("<|eot_id|>")
    found = renderer.parse_tools(answer)
    assert found == [ToolCall("f", {"city": "北京"}), ToolCall("g", {"n": [1, {"z": None}]})]
    results = (Message("observation", "one"), Message("observation", "two"), Message("assistant", "done"))
    whole = renderer.text(Conversation((*head, *results)))
    assert whole.startswith(text)
    assert whole.index("one") < whole.index("two") < whole.index("done")
