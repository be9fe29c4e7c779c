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
