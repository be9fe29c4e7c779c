"""Ollama's Modelfile: quoting that cannot be broken out of, and the lines of an exported model.

A value ends at a line break after which everything read so far is a complete quotation; there are no escapes. Knows
neither models nor templates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llamafactory.errors import ConfigError

_TRIPLE = '"""'


def build_modelfile(*, template: str, system: str, stops: Sequence[str], context_length: int | None) -> str:
    """The text of a Modelfile for the model in the same folder.

    Raises ConfigError when a value cannot be written without ending early.
    """
    lines = ["# Use with: ollama create NAME -f Modelfile", "FROM ."]
    if template:
        lines.append(f"TEMPLATE {quote(template, 'template')}")
    if system:
        lines.append(f"SYSTEM {quote(system, 'default_system')}")
    lines += [f"PARAMETER stop {quote(stop, 'stop')}" for stop in dict.fromkeys(stops)]
    if context_length is not None:
        lines.append(f"PARAMETER num_ctx {context_length}")
    return "\n".join(lines) + "\n"


def quote(value: str, key: str) -> str:
    """Quote a value so that it is read back unchanged. Raises ConfigError when no quotation can hold it."""
    if not re.search(r'["\r\n]', value):
        return f'"{value}"'
    quoted = f"{_TRIPLE}{value}{_TRIPLE}"
    breaks = [found.start() for found in re.finditer(r"[\r\n]", quoted)]
    if any(_is_complete(quoted[:position].strip()) for position in breaks):
        raise ConfigError(
            f"{key}: a line ends with three quotation marks, which ends the value in a Modelfile; "
            "change or remove them in the text"
        )
    return quoted


def _is_complete(text: str) -> bool:
    return len(text) >= 2 * len(_TRIPLE) and text.endswith(_TRIPLE)
