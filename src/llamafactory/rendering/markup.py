"""Text of two kinds: markup, whose control tokens count, and plain data, which is never read as markup.

Knows neither tokenizers nor templates.
"""

from __future__ import annotations

from collections.abc import Iterable


class Markup(str):
    """Protocol text: control tokens written in it become single ids. A plain `str` beside it is data and stays text."""

    __slots__ = ()


Fragments = list[str]
"""Text in order; each item is either Markup or data."""


def join_fragments(groups: Iterable[Fragments], separator: str) -> Fragments:
    """Concatenate groups of fragments with a markup separator between them."""
    joined: Fragments = []
    for index, group in enumerate(groups):
        if index:
            joined.append(Markup(separator))
        joined.extend(group)
    return joined


def plain(fragments: Iterable[str]) -> str:
    """The text of fragments, whatever their kind."""
    return "".join(fragments)


def quote(text: str) -> str:
    """`text` as a string literal of Jinja."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


CALL_JINJA = "{%- for item in calls -%}{%- set call = item.function if item.function is defined else item -%}"
"""Begins a loop over tool calls, whether or not they stand inside `function`."""

ARGUMENTS_JINJA = "(call.arguments if call.arguments is string else call.arguments | tojson)"
"""A call's arguments as JSON text."""

WRAPPED_JINJA = "(tool if tool.function is defined else {'type': 'function', 'function': tool})"
BARE_JINJA = "(tool.function if tool.function is defined else tool)"
"""A tool's schema with and without `{"type": "function", ...}` around it."""
