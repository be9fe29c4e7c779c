"""Chat templates in Jinja, written from slots: they render the text the renderer tokenizes.

For transformers, vLLM and every engine that applies a tokenizer's chat template. Knows templates, no tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamafactory.rendering.markup import quote
from llamafactory.rendering.template import CONTENT, TURN, Slot, Special, Template, Token
from llamafactory.rendering.thinking import ThinkingMode


@dataclass(frozen=True, slots=True)
class ToolTexts:
    """Jinja of a tool format: writes the text for `tools`, and for `calls`. Empty where the format has none."""

    tools: str = ""
    calls: str = ""


_HEAD = """\
{%- if messages and messages[0].role == 'system' -%}
  {%- set system = messages[0].content -%}{%- set dialogue = messages[1:] -%}
{%- else -%}
  {%- set system = '' -%}{%- set dialogue = messages -%}
{%- endif -%}
"""

_PROMPT_CHECK = """\
    {%- if state.prompt and not (tool and state.prompt == 'tool') -%}
      {{- raise_exception('Conversation roles must alternate: user (or tool results), then assistant.') -}}
    {%- endif -%}
"""

_ANSWER_CHECK = """\
    {%- if not state.prompt -%}
      {{- raise_exception('Conversation roles must alternate: an assistant message must follow a user message.') -}}
    {%- endif -%}
"""


def chat_template(
    template: Template, tools: ToolTexts, *, thinking: ThinkingMode, date: str, stops: tuple[bool, bool]
) -> str:
    """Write the chat template. stops: whether answers, and tool calls, end with a stop token of their own.

    Takes `messages`, `tools`, `add_generation_prompt`, `bos_token`, `eos_token` and, for reasoning templates,
    `enable_thinking`; refuses messages out of order.
    """
    parts = [
        _HEAD,
        _defaults(template, thinking, date if "date_string" in tools.tools else ""),
        _tool_text(template, tools),
        _write(_expression(template.prefix)),
        _system(template),
        "{%- set state = namespace(prompt='', turn=0) -%}\n{%- for message in dialogue -%}\n",
        "  {%- set tool = message.role == 'tool' -%}\n  {%- if message.role == 'user' or tool -%}\n",
        _PROMPT_CHECK,
        _prompts(template),
        "    {%- set state.prompt = message.role -%}\n  {%- elif message.role == 'assistant' -%}\n",
        _ANSWER_CHECK,
        _generation(template, indent=4),
        _answer(template, tools, thinking, stops),
        "    {%- set state.prompt = '' -%}{%- set state.turn = state.turn + 1 -%}\n",
        "  {%- else -%}\n    {{- raise_exception('Unknown role: ' ~ message.role) -}}\n",
        "  {%- endif -%}\n{%- endfor -%}\n",
        "{%- if add_generation_prompt -%}\n",
        _generation(template, indent=2),
        _opening_thought(template),
        "{%- endif -%}\n",
    ]
    return "".join(parts)


def _expression(slot: Slot, content: str = "content") -> str:
    """A slot as one Jinja expression; `content` is the expression for the message."""
    names = {CONTENT: content, TURN: "(state.turn + 1)"}
    parts = []
    for part in slot:
        if isinstance(part, str):
            parts.append(quote(part))
        elif isinstance(part, Special):
            parts.append(f"{part.name}_token")
        elif isinstance(part, Token):
            parts.append(quote(part.text))
        else:
            parts.append(names[part])
    return " ~ ".join(parts)


def _write(expression: str, indent: int = 0) -> str:
    return f"{' ' * indent}{{{{- {expression} -}}}}\n" if expression else ""


def _defaults(template: Template, thinking: ThinkingMode, date: str) -> str:
    text = ""
    if template.default_system:
        text += f"{{%- if not system -%}}{{%- set system = {quote(template.default_system)} -%}}{{%- endif -%}}\n"
    if template.reasoning:
        value = {True: "true", False: "false", None: "none"}[thinking.enable]
        text += "{%- if enable_thinking is not defined -%}{%- set enable_thinking = " + value + " -%}{%- endif -%}\n"
    if date:
        text += "{%- if date_string is not defined -%}{%- set date_string = " + quote(date) + " -%}{%- endif -%}\n"
    return text


def _tool_text(template: Template, tools: ToolTexts) -> str:
    """Append the description of tools to the system prompt."""
    inside = tools.tools or "{{- raise_exception('This chat template takes no tools.') -}}"
    described = "  {%- set described -%}" + inside + "{%- endset -%}\n"
    text = "(described if system else described.lstrip('\\n'))" if template.bare_tools else "described"
    added = "  {%- set system = system ~ " + _expression(template.tools, text) + " -%}\n"
    return "{%- if tools -%}\n" + described + added + "{%- endif -%}\n"


def _system(template: Template) -> str:
    if template.system_style == "merged":
        return ""
    return "{%- if system -%}" + _write(_expression(template.system, "system")).rstrip("\n") + "{%- endif -%}\n"


def _prompts(template: Template) -> str:
    """Write a user message or a tool result."""
    text = "    {%- set content = message.content -%}\n"
    if template.system_style == "merged":
        text += (
            "    {%- if loop.first and system -%}{%- set content = "
            + _expression(template.system, "system")
            + " ~ content -%}{%- endif -%}\n"
        )
    user, result = _expression(template.user), _observation(template)
    if template.observation is None and template.observation_separator is None:
        return text + _write(user, 4)
    return text + "    {%- if tool -%}\n" + result + "    {%- else -%}\n" + _write(user, 6) + "    {%- endif -%}\n"


def _observation(template: Template) -> str:
    slot = template.observation or template.user
    separator = template.observation_separator
    if separator is None:
        return _write(_expression(slot), 6)
    at = slot.index(CONTENT)
    before, behind = _expression(slot[:at]), _expression(slot[at + 1 :])
    return (
        "      {{- (" + _expression(separator) + ") if state.prompt == 'tool' else (" + (before or "''") + ") -}}\n"
        + _write("content", 6)
        + "      {%- if loop.last or dialogue[loop.index0 + 1].role != 'tool' -%}{{- " + (behind or "''")
        + " -}}{%- endif -%}\n"
    )  # fmt: skip


def _generation(template: Template, *, indent: int) -> str:
    usual = _expression(template.generation) or "''"
    if template.observation_generation is None:
        return _write(usual, indent) if template.generation else ""
    after = _expression(template.observation_generation) or "''"
    return _write(f"({after}) if state.prompt == 'tool' else ({usual})", indent)


def _opening_thought(template: Template) -> str:
    if not template.reasoning:
        return ""
    return "  {%- if not enable_thinking -%}{{- " + quote(template.no_thought) + " -}}{%- endif -%}\n"


def _answer(template: Template, tools: ToolTexts, thinking: ThinkingMode, stops: tuple[bool, bool]) -> str:
    """Write an assistant message: thoughts put in order, then text, or text and calls."""
    text = "    {%- set content = message.content or '' -%}\n"
    lead = "lead ~ " if template.reasoning else ""
    if template.reasoning:
        text += _thoughts(template, thinking)
    text += "    {%- if message.tool_calls -%}\n      {%- set calls = message.tool_calls -%}\n"
    inside = tools.calls or "{{- raise_exception('This chat template takes no tool calls.') -}}"
    text += "      {%- set called -%}" + inside + "{%- endset -%}\n"
    text += _write(lead + _expression(template.function or template.assistant, "content ~ called"), 6) + _end(stops[1])
    return (
        text
        + "    {%- else -%}\n"
        + _write(lead + _expression(template.assistant), 6)
        + _end(stops[0])
        + "    {%- endif -%}\n"
    )


def _end(stops: bool) -> str:
    return "" if stops else "      {%- if loop.last -%}{{- eos_token -}}{%- endif -%}\n"


def _thoughts(template: Template, thinking: ThinkingMode) -> str:
    """Drop thoughts where the renderer does, and put an empty one where the last answer has none."""
    opening, closing = (word.strip() for word in template.thought_words)
    begins = f"content.lstrip().startswith({quote(opening)}) and {quote(closing)} in content"
    drop = "loop.last and enable_thinking is false" + ("" if thinking.preserve else " or not loop.last")
    marked = f"{quote(opening)} in content or {quote(closing)} in content"
    words = template.thought_words
    return (
        "    {%- if message.reasoning_content -%}{%- set content = "
        f"{quote(words[0])} ~ message.reasoning_content ~ {quote(words[1])} ~ content -%}}{{%- endif -%}}\n"
        f"    {{%- if ({drop}) and {begins} -%}}\n"
        f"      {{%- set content = (content.split({quote(closing)})[1:] | join({quote(closing)})).lstrip('\\n') -%}}\n"
        "    {%- endif -%}\n"
        f"    {{%- set lead = {quote(template.no_thought)} if loop.last and not ({marked}) else '' -%}}\n"
    )
