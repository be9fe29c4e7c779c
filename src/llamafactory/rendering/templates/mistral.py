"""Templates of the Mistral models, and of models that keep their form."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import BOS, CONTENT, EOS, MediaTokens, Template

BREEZE = Template(
    name="breeze",
    user=("[INST] ", CONTENT, " [/INST] "),
    assistant=(CONTENT,),
    prefix=(BOS,),
    efficient_eos=True,
)

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

MINISTRAL = replace(
    MISTRAL,
    name="ministral",
    user=("[INST]", CONTENT, "[/INST]"),
    assistant=(CONTENT, EOS),
    observation=('[TOOL_RESULTS]{"content": ', CONTENT, "}[/TOOL_RESULTS]"),
    function=("[TOOL_CALLS]", CONTENT, EOS),
)

PIXTRAL = replace(MINISTRAL, name="pixtral", media=MediaTokens("pixtral", image="[IMG]"))
MINISTRAL3 = replace(PIXTRAL, name="ministral3")
MISTRAL_SMALL = replace(
    PIXTRAL, name="mistral_small", system=("[SYSTEM_PROMPT]", CONTENT, "[/SYSTEM_PROMPT]"), system_style="block"
)

TEMPLATES = (BREEZE, MISTRAL, MINISTRAL, PIXTRAL, MINISTRAL3, MISTRAL_SMALL)
