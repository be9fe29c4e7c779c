"""Reading of one format's calls, and vendors' chat templates where a package that ships them is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.sandbox import ChatTemplate
from llamafactory.rendering.tools import load_tool_format

Calls = Sequence[tuple[str, dict[str, object]]]


@pytest.fixture
def read() -> Callable[[str, str], Calls | None]:
    """Reads calls of a format as plain values."""

    def parse(name: str, text: str) -> Calls | None:
        found = load_tool_format(name).parse_calls(text)
        return None if found is None else [(call.name, dict(call.arguments)) for call in found]

    return parse


@pytest.fixture
def vendor_answer() -> Callable[..., str]:
    """Renders calls with a vendor's own chat template: everything behind the user's message."""

    def render(file: str, calls: Sequence[ToolCall], **variables: object) -> str:
        package = importlib.util.find_spec("trl")
        if package is None or package.origin is None:
            pytest.skip("no package with vendors' chat templates is installed")
        path = Path(package.origin).parent / "chat_templates" / file
        if not path.exists():
            pytest.skip(f"the installed package ships no {file}")
        written = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in calls]
        messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "tool_calls": written}]
        source = ChatTemplate(path.read_text(encoding="utf-8"), date="2025-01-15")
        text = source.render({"messages": messages, "bos_token": "<bos>", **variables})
        return text.partition("go")[2]

    return render
