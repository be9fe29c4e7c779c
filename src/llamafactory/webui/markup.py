"""Text of a model or a person, made safe for a page that draws Markdown: HTML is shown as text, code stays as it is."""

from __future__ import annotations

import re

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)


def show_as_text(text: str) -> str:
    """Markdown in which HTML tags and entities appear as they are written.

    Code needs no change, as Markdown shows it as it is; a fence that is not closed yet is code to the end.
    """
    parts: list[str] = []
    prose: list[str] = []
    fence = ""
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if fence:
            parts.append(line)
            closes = mark is not None and mark[1].startswith(fence) and not line.strip().strip(fence[0])
            fence = "" if closes else fence
        elif mark is not None:
            parts += [_prose("".join(prose)), line]
            prose, fence = [], mark[1]
        else:
            prose.append(line)
    return "".join([*parts, _prose("".join(prose))])


def _prose(text: str) -> str:
    """Text outside fences; code between backticks stays as it is."""
    found, place = [], 0
    for span in _CODE_SPAN.finditer(text):
        found += [_escape(text[place : span.start()]), span[0]]
        place = span.end()
    return "".join([*found, _escape(text[place:])])


def _escape(text: str) -> str:
    # A picture would be fetched from where the text says; it becomes a link.
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("![", "\\![")
    # A ">" is only dangerous behind a "<"; at the start of a line it is a quotation.
    return re.sub(r"(?<=\S)>", "&gt;", escaped)
