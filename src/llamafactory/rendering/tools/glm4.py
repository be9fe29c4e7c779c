"""Tool format of GLM-4: the function's name on a line, its JSON arguments below.

Calls made at once are written one behind the other, each opened by `<|assistant|>` as a message of its own would be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llamafactory.rendering.calls import Schema, Starts, ToolCall, dump, name_of, read_json, skip_blanks, unwrap
from llamafactory.rendering.markup import (
    ARGUMENTS_JINJA,
    BARE_JINJA,
    CALL_JINJA,
    Fragments,
    Markup,
    join_fragments,
    quote,
)

HEAD = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)
TAIL = "\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
NEXT = "<|assistant|>"
STARTS = Starts(answer=("{name}\n",))

_NAME = re.compile(r"[\w.\-]+")

TOOLS_JINJA = (
    "{{- " + quote(HEAD) + " -}}{%- for tool in tools -%}{%- set schema = " + BARE_JINJA
    + " -%}{{- '\\n\\n## ' ~ schema.name ~ '\\n\\n' ~ schema | tojson(indent=4) ~ " + quote(TAIL) + " -}}{%- endfor -%}"
)  # fmt: skip
CALLS_JINJA = (
    CALL_JINJA + "{%- if not loop.first -%}{{- " + quote(NEXT) + " -}}{%- endif -%}{{- call.name ~ '\\n' ~ "
    + ARGUMENTS_JINJA + " -}}{%- endfor -%}"
)  # fmt: skip


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """A heading and an indented JSON schema for each tool."""
    fragments: Fragments = [Markup(HEAD)]
    for tool in tools:
        fragments += [f"\n\n## {name_of(tool)}\n\n{dump(unwrap(tool), indent=4)}", Markup(TAIL)]
    return fragments


def render_calls(calls: Sequence[ToolCall]) -> Fragments:
    """Name and arguments of each call."""
    return join_fragments(([f"{call.name}\n{call.arguments_json}"] for call in calls), NEXT)


def parse_calls(text: str, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
    """Read names and arguments that are all of the answer."""
    calls = []
    start = skip_blanks(text, 0)
    while start < len(text):
        name = _NAME.match(text, start)
        found = read_json(text, name.end() + 1) if name and text[name.end() : name.end() + 1] == "\n" else None
        if name is None or found is None or not isinstance(found[0], Mapping):
            return None
        calls.append(ToolCall(name.group(), found[0]))
        start = skip_blanks(text, found[1])
        if text.startswith(NEXT, start):
            start = skip_blanks(text, start + len(NEXT))
    return calls or None
