"""How a conversation becomes text. Knows no tokenizer."""

from typing import ClassVar

from llamafactory.config.section import Section, option


class TemplateConfig(Section):
    """Chat template, tool format and reasoning mode."""

    title: ClassVar[str] = "Template"

    template: str | None = option(
        None, "Name of the chat template; left out, a known model's, else the tokenizer's own is used."
    )
    allow_template_mismatch: bool = option(
        False, "Use a chat template that contradicts the one a known model was trained with."
    )
    tool_format: str | None = option(None, "Format of tools and tool calls in place of the template's own.")
    default_system: str | None = option(None, "System message for conversations that bring none.")
    enable_thinking: bool | None = option(
        True, "Reasoning mode of templates that have one: true, false, or null to follow each example."
    )
    preserve_thinking: bool = option(False, "Keep the thoughts of earlier turns in the context.")
    template_date: str | None = option(
        None,
        "Date written by templates that state today's date, so that runs can be repeated; left out, 26 Jul 2024.",
        unit="as the template prints it",
    )
