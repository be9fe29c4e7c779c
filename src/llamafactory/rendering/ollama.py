"""Ollama templates: a chat template's texts around messages, written in Go's template language.

Whitespace is exact: no trim markers, every text stands as it is. Knows no tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

Around = tuple[str, str]
"""Text before and behind a message."""

_LAST = "{{ if eq (len (slice $.Messages $i)) 1 }}"

TURN_MARK = "\x00"
"""Stands for the number of the turn in the text around a user message. Go counts it as the length of a string."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The texts around messages.

    prefix: before everything. system: around the system prompt, or None when the template takes none; `merged` puts it
    in front of the first user text, `prefix_in_system` means its text begins with the prefix already. generation opens
    an answer, `tool_generation` does so after a tool result (None: the same text), and empty_thought follows them where
    an answer is to be made. tool: around a tool result; with a tool_separator, results in a row share it and have the
    separator between them. default_system: used when there is none.
    """

    user: Around
    answer: Around
    generation: str = ""
    prefix: str = ""
    system: Around | None = None
    tool: Around | None = None
    tool_separator: str | None = None
    tool_generation: str | None = None
    default_system: str = ""
    merged: bool = False
    prefix_in_system: bool = False
    empty_thought: str = ""


def ollama_template(frame: Frame, *, bos: str, writes_bos: bool) -> str:
    """The Go template of a Modelfile. writes_bos: the tokenizer puts the begin token `bos` first by itself."""
    repeated = ""
    if writes_bos and bos:
        in_system = frame.system is not None and not frame.merged and frame.system[0].startswith(bos)
        if not frame.prefix and frame.user[0].startswith(bos):
            repeated = bos
        frame = replace(
            frame,
            prefix=frame.prefix.removeprefix(bos),
            system=(frame.system[0].removeprefix(bos), frame.system[1]) if frame.system and in_system else frame.system,
            user=(frame.user[0].removeprefix(repeated), frame.user[1]),
        )
    started = "{{ $started := false }}" if repeated else ""
    return started + _opening(frame, marks_start=bool(repeated)) + _messages(frame, repeated)


def _opening(frame: Frame, *, marks_start: bool) -> str:
    """Prefix and system prompt."""
    prefix = _text(frame.prefix)
    if frame.system is None or frame.merged:
        return prefix
    before, behind = map(_text, frame.system)
    before = before if frame.prefix_in_system else prefix + before
    behind += "{{ $started = true }}" if marks_start else ""
    if frame.default_system:
        return before + _system_value(frame, ".System") + behind
    return "{{ if .System }}" + before + "{{ .System }}" + behind + "{{ else }}" + prefix + "{{ end }}"


def _system_value(frame: Frame, name: str) -> str:
    value = "{{ " + name + " }}"
    if not frame.default_system:
        return value
    return "{{ if " + name + " }}" + value + "{{ else }}" + _text(frame.default_system) + "{{ end }}"


def _messages(frame: Frame, repeated: str) -> str:
    opening = "{{ if $started }}" + _text(repeated) + "{{ end }}{{ $started = true }}" if repeated else ""
    counted = TURN_MARK in frame.user[0] + frame.user[1]
    text = "{{ $first := true }}" if frame.merged else ""
    text += '{{ $turns := "." }}' if counted else ""
    text += "{{ $result := false }}" if _remembers_results(frame) else ""
    text += "{{ range $i, $message := .Messages }}"
    user = _around(frame.user, _merged(frame) + "{{ .Content }}") + _asked(frame.generation + frame.empty_thought)
    text += '{{ if eq .Role "user" }}' + _after_result(frame, "") + opening + user
    text += _tool(frame)
    text += '{{ else if eq .Role "assistant" }}' + _after_result(frame, frame.generation)
    text += _text(frame.answer[0]) + "{{ .Content }}"
    text += _LAST + "{{ else }}" + _text(frame.answer[1]) + "{{ end }}"
    text += '{{ $turns = printf "%s." $turns }}' if counted else ""
    return text + "{{ end }}{{ end }}"


def _asked(text: str) -> str:
    """What follows the last message, to be answered."""
    return _LAST + _text(text) + "{{ end }}"


def _remembers_results(frame: Frame) -> bool:
    """True when text depends on whether the message before was a tool result."""
    return frame.tool is not None and (frame.tool_separator is not None or frame.tool_generation is not None)


def _tool(frame: Frame) -> str:
    """The branch of a tool result. One that shares its frame is closed by what follows."""
    if frame.tool is None:
        return ""
    opened = (frame.generation if frame.tool_generation is None else frame.tool_generation) + frame.empty_thought
    if frame.tool_separator is None:
        written = _around(frame.tool, "{{ .Content }}") + _asked(opened)
    else:
        start = "{{ if $result }}" + _text(frame.tool_separator) + "{{ else }}" + _text(frame.tool[0]) + "{{ end }}"
        written = start + "{{ .Content }}" + _asked(frame.tool[1] + opened)
    remember = "{{ $result = true }}" if _remembers_results(frame) else ""
    return '{{ else if eq .Role "tool" }}' + written + remember


def _after_result(frame: Frame, generation: str) -> str:
    """`generation`, or what takes its place after a tool result, whose shared frame is closed."""
    if frame.tool is None or not _remembers_results(frame):
        return _text(generation)
    closing = "" if frame.tool_separator is None else frame.tool[1]
    later = generation if frame.tool_generation is None or not generation else frame.tool_generation
    return (
        "{{ if $result }}"
        + _text(closing + later)
        + "{{ else }}"
        + _text(generation)
        + "{{ end }}{{ $result = false }}"
    )


def _merged(frame: Frame) -> str:
    """The system prompt in front of the first user text."""
    if not frame.merged or frame.system is None:
        return ""
    written = _around(frame.system, _system_value(frame, "$.System"))
    if not frame.default_system:
        written = "{{ if $.System }}" + written + "{{ end }}"
    return "{{ if $first }}" + written + "{{ end }}{{ $first = false }}"


def _around(texts: Around, inside: str) -> str:
    return _text(texts[0]) + inside + _text(texts[1])


def _text(text: str) -> str:
    """Literal text; Go's opening braces are spelled as a string."""
    return text.replace("{{", '{{ "{{" }}').replace(TURN_MARK, "{{ len $turns }}")
