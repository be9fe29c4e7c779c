"""Text on a page: HTML is shown, not drawn; code and Markdown stay what they are."""

from __future__ import annotations

import pytest

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
        ("![x](http://far.example/y)", "\\![x](http://far.example/y)"),
        ("&lt;", "&amp;lt;"),
        ("", ""),
    ],
)
def test_html_is_shown_as_text(text: str, shown: str) -> None:
    assert show_as_text(text) == shown
