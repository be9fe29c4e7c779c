"""Tool format of Llama 3.1 and later: the whole answer is one JSON call or a list of them."""

from __future__ import annotations

from collections.abc import Sequence

from llamafactory.rendering.calls import Schema, Starts, ToolCall, dump, read_whole_json, to_calls, wrap
from llamafactory.rendering.markup import ARGUMENTS_JINJA, CALL_JINJA, WRAPPED_JINJA, Fragments, Markup, quote

HEAD = "Cutting Knowledge Date: December 2023\nToday Date: "
BODY = (
    "\n\nYou have access to the following functions. To call a function, please respond with JSON for a function call. "
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}. '
    "Do not use variables.\n\n"
)
PYTHON_TAG = "<|python_tag|>"
STARTS = Starts(answer=(PYTHON_TAG, "{", "["))

TOOLS_JINJA = (
    "{{- " + quote(HEAD) + " ~ date_string ~ " + quote(BODY) + " -}}{%- for tool in tools -%}{{- " + WRAPPED_JINJA
    + " | tojson(indent=4) ~ '\\n\\n' -}}{%- endfor -%}"
)  # fmt: skip
CALLS_JINJA = (
    "{%- if calls | length > 1 -%}{{- '[' -}}{%- endif -%}" + CALL_JINJA
    + "{{- '{\"name\": ' ~ call.name | tojson ~ ', \"parameters\": ' ~ " + ARGUMENTS_JINJA
    + " ~ '}' -}}{%- if not loop.last -%}{{- ', ' -}}{%- endif -%}{%- endfor -%}"
    "{%- if calls | length > 1 -%}{{- ']' -}}{%- endif -%}"
)  # fmt: skip


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """The date, then one indented, wrapped JSON schema after another."""
    return [Markup(HEAD), date, Markup(BODY), *(dump(wrap(tool), indent=4) + "\n\n" for tool in tools)]


def render_calls(calls: Sequence[ToolCall]) -> Fragments:
    """One JSON object, or a list when there are several calls."""
    objects = [{"name": call.name, "parameters": call.arguments} for call in calls]
    return [dump(objects[0] if len(objects) == 1 else objects)]


def parse_calls(text: str, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
    """Read an answer that is JSON calls and nothing else, or follows the tag that begins calls."""
    return to_calls(read_whole_json(text.strip().removeprefix(PYTHON_TAG)), key="parameters", needed=True)
