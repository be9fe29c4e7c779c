"""Templates of the Falcon models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import BOS, CONTENT, Template
from llamafactory.rendering.templates.chatml import TOOL_FRAME

FALCON = Template(
    name="falcon",
    user=("User: ", CONTENT, "\n"),
    generation=("Falcon:",),
    assistant=(CONTENT, "\n"),
    efficient_eos=True,
)

FALCON_H1 = replace(TOOL_FRAME, name="falcon_h1", prefix=(BOS,), stop_words=("<|im_end|>", "<|end_of_text|>"))

TEMPLATES = (FALCON, FALCON_H1)
