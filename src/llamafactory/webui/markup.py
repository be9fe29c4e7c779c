"""Text of a model or a person, made safe for a page that draws Markdown: HTML is shown as text, code stays as it is."""

from __future__ import annotations

import re

_FENCE = re.compile(r"( {0,3})(`{3,}(?=[^`]*$)|~{3,})")
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)[^\n]+?(?<!`)\1(?!`)")
_DOUBTFUL = re.compile(r"\\`|`[^\n]*\||\|[^\n]*`")  # an escaped backtick; one in what may be a table


def show_as_text(text: str) -> str:
    """Markdown in which HTML tags and entities appear as they are written.

    Code needs no change, as Markdown shows it as it is; a fence that is not closed yet is code to the end, or to the
    end of the list it stands in.
    """
    parts: list[str] = []
    prose: list[str] = []
    fence, indent = "", ""
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if fence and line.strip() and not line.startswith(indent):
            fence = ""
        if fence:
            parts.append(line)
            closes = mark is not None and mark[2].startswith(fence) and not line.strip().strip(fence[0])
            fence = "" if closes else fence
        elif mark is not None:
            parts += [_prose("".join(prose)), line]
            prose, indent, fence = [], mark[1], mark[2]
        else:
            prose.append(line)
    return "".join([*parts, _prose("".join(prose))])


def _prose(text: str) -> str:
    """Text outside fences; code between backticks stays as it is, in paragraphs where it is plain what is code."""
    return "".join(map(_paragraph, re.split(r"(\n[ \t]*\n)", text)))


def _paragraph(text: str) -> str:
    found, place, doubtful = [], 0, _DOUBTFUL.search(text) is not None
    for span in _CODE_SPAN.finditer(text):
        between = text[place : span.start()]
        doubtful = doubtful or "`" in between
        found += [_escape(between), span[0]]
        place = span.end()
    rest = text[place:]
    return _escape(text) if doubtful or "`" in rest else "".join([*found, _escape(rest)])


def _escape(text: str) -> str:
    # A picture would be fetched from where the text says; it becomes a link.
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("![", "&#33;[")
    # A ">" is only dangerous behind a "<"; at the start of a line it is a quotation.
    return re.sub(r"(?<=\S)>", "&gt;", escaped)
