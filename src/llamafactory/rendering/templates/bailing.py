"""Templates of the Bailing and Ling models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import CONTENT, Template

BAILING = Template(
    name="bailing",
    user=("<role>HUMAN</role>", CONTENT),
    generation=("<role>ASSISTANT</role>",),
    assistant=(CONTENT,),
    system=("<role>SYSTEM</role>", CONTENT),
    observation=("<role>OBSERVATION</role>", CONTENT),
    stop_words=("<|endoftext|>",),
    efficient_eos=True,
)

BAILING_V2 = replace(
    BAILING,
    name="bailing_v2",
    user=("<role>HUMAN</role>", CONTENT, "<|role_end|>"),
    assistant=(CONTENT, "<|role_end|>"),
    system=("<role>SYSTEM</role>", CONTENT, "<|role_end|>"),
    observation=("<role>OBSERVATION</role>\n<tool_response>\n", CONTENT, "\n</tool_response><|role_end|>"),
    tool_format="ling",
)

TEMPLATES = (BAILING, BAILING_V2)
