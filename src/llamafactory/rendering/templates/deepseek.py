"""Templates of the DeepSeek models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import BOS, CONTENT, EOS, Template

DEEPSEEK3 = Template(
    name="deepseek3",
    user=("<｜User｜>", CONTENT),
    generation=("<｜Assistant｜>",),
    assistant=(CONTENT, EOS),
    prefix=(BOS,),
)

DEEPSEEKR1 = replace(DEEPSEEK3, name="deepseekr1", reasoning=True)

TEMPLATES = (DEEPSEEK3, DEEPSEEKR1)
