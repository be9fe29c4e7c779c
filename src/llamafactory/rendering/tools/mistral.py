"""Tool format of Mistral models: JSON lists between control tokens."""

from __future__ import annotations

from collections.abc import Sequence

from llamafactory.rendering.calls import Schema, Starts, ToolCall, between, dump, read_whole_json, to_calls, wrap
from llamafactory.rendering.markup import ARGUMENTS_JINJA, CALL_JINJA, WRAPPED_JINJA, Fragments, quote

HEAD, TAIL = "[AVAILABLE_TOOLS] ", "[/AVAILABLE_TOOLS]"
CALLS_TAG = "[TOOL_CALLS]"
STARTS = Starts(answer=(CALLS_TAG, "[", "{"))

TOOLS_JINJA = (
    "{{- " + quote(HEAD + "[") + " -}}{%- for tool in tools -%}{{- " + WRAPPED_JINJA
    + " | tojson -}}{%- if not loop.last -%}{{- ', ' -}}{%- endif -%}{%- endfor -%}{{- " + quote("]" + TAIL) + " -}}"
)  # fmt: skip
CALLS_JINJA = (
    "{{- '[' -}}" + CALL_JINJA + "{{- '{\"name\": ' ~ call.name | tojson ~ ', \"arguments\": ' ~ " + ARGUMENTS_JINJA
    + " ~ '}' -}}{%- if not loop.last -%}{{- ', ' -}}{%- endif -%}{%- endfor -%}{{- ']' -}}"
)  # fmt: skip


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """A JSON list of wrapped schemas."""
    return between(HEAD, dump([wrap(tool) for tool in tools]), TAIL)


def render_calls(calls: Sequence[ToolCall]) -> Fragments:
    """A JSON list of calls; the template writes the control token before it."""
    return [dump([{"name": call.name, "arguments": call.arguments} for call in calls])]


def parse_calls(text: str, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
    """Read an answer that is JSON calls and nothing else."""
    return to_calls(read_whole_json(text.strip().removeprefix(CALLS_TAG)), needed=True)
