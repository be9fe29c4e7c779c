"""Templates of the Gemma models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import BOS, CONTENT, MediaTokens, Template

GEMMA = Template(
    name="gemma",
    user=("<start_of_turn>user\n", CONTENT, "<end_of_turn>\n"),
    generation=("<start_of_turn>model\n",),
    assistant=(CONTENT, "<end_of_turn>\n"),
    system=(CONTENT, "\n\n"),
    observation=("<start_of_turn>tool\n", CONTENT, "<end_of_turn>\n"),
    prefix=(BOS,),
    system_style="merged",
    stop_words=("<end_of_turn>",),
    replace_eos=True,
)

GEMMA3 = replace(GEMMA, name="gemma3", media=MediaTokens("gemma3", image="<image_soft_token>"))

TEMPLATES = (GEMMA, GEMMA3)
