"""Templates of the Qwen models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import CONTENT, Template
from llamafactory.rendering.templates.chatml import CHATML

QWEN = replace(
    CHATML,
    name="qwen",
    observation=("<|im_start|>user\n<tool_response>\n", CONTENT, "\n</tool_response><|im_end|>\n"),
    observation_separator=("\n</tool_response>\n<tool_response>\n",),
    default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    stop_words=("<|im_end|>",),
    tool_format="qwen",
    replace_jinja_template=False,
)

QWEN3_NOTHINK = replace(QWEN, name="qwen3_nothink", default_system="")
QWEN3 = replace(QWEN3_NOTHINK, name="qwen3", reasoning=True)

TEMPLATES: tuple[Template, ...] = (QWEN, QWEN3, QWEN3_NOTHINK)
