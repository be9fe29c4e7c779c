"""Text on a page: HTML is shown, not drawn; code and Markdown stay what they are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from llamafactory.webui.markup import show_as_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>x</b> & y", "&lt;b&gt;x&lt;/b&gt; &amp; y"),
        ("> quoted\n**bold**", "> quoted\n**bold**"),
        ("`<i>` and <i>", "`<i>` and &lt;i&gt;"),
        ("``a ` <b>`` <c>", "``a ` <b>`` &lt;c&gt;"),
        ("`open <b>", "`open &lt;b&gt;"),
        ("a <b>\n```html\n<i>\n```\n<c>", "a &lt;b&gt;\n```html\n<i>\n```\n&lt;c&gt;"),
        ("```\n<still writing", "```\n<still writing"),
        ("````\n```\n<i>\n````\n<c>", "````\n```\n<i>\n````\n&lt;c&gt;"),
        ("~~~\n```\n<i>\n~~~\n<c>", "~~~\n```\n<i>\n~~~\n&lt;c&gt;"),
        ("![x](http://far.example/y)", "&#33;[x](http://far.example/y)"),
        ("&lt;", "&amp;lt;"),
        ("\\`<b>x</b>\\`", "\\`&lt;b&gt;x&lt;/b&gt;\\`"),
        ("a `b\n\n<i>` c", "a `b\n\n&lt;i&gt;` c"),
        ("``` `x\n<i>\n```\n", "``` `x\n&lt;i&gt;\n```\n"),
        ("| `a | <i>` |", "| `a | &lt;i&gt;` |"),
        ("`a\n`<i>`b`", "`a\n`&lt;i&gt;`b`"),
        ("- a\n  ```\n  <b>\n<i>", "- a\n  ```\n  <b>\n&lt;i&gt;"),
        ("- a\n  ```\n  <b>\n  ```\n  <i>", "- a\n  ```\n  <b>\n  ```\n  &lt;i&gt;"),
        ("", ""),
    ],
)
def test_html_is_shown_as_text(text: str, shown: str) -> None:
    assert show_as_text(text) == shown


PIECES = (
    "`", "``", "```", "~~~", "<b>", "![x](y)", "\n", "\n\n", "a", " ", "  ", "- ", "> ", "1. ", "|", "\\", "|-|", "# ",
    "    ", "\t",
)  # fmt: skip


@settings(max_examples=500)
@given(st.lists(st.sampled_from(PIECES), max_size=14))
def test_no_text_makes_a_page_draw_html_or_fetch_a_picture(pieces: list[str]) -> None:
    draws = MarkdownIt("commonmark", {"html": True}).enable("table")
    drawn = [
        inner for token in draws.parse(show_as_text("".join(pieces))) for inner in (token, *(token.children or ()))
    ]
    assert not [token for token in drawn if token.type in ("html_inline", "html_block", "image")]
