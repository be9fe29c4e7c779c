"""Templates of the Mistral models."""

from __future__ import annotations

from llamafactory.rendering.template import BOS, CONTENT, EOS, Template

MISTRAL = Template(
    name="mistral",
    user=("[INST] ", CONTENT, "[/INST]"),
    assistant=(" ", CONTENT, EOS),
    system=(CONTENT, "\n\n"),
    observation=('[TOOL_RESULTS] {"content": ', CONTENT, "}[/TOOL_RESULTS]"),
    function=("[TOOL_CALLS] ", CONTENT, EOS),
    prefix=(BOS,),
    system_style="merged",
    tool_format="mistral",
)

TEMPLATES = (MISTRAL,)
