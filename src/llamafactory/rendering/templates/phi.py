"""Templates of the Phi models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import CONTENT, Template, Token

PHI = Template(
    name="phi",
    user=("<|user|>\n", CONTENT, "<|end|>\n"),
    generation=("<|assistant|>\n",),
    assistant=(CONTENT, "<|end|>\n"),
    system=("<|system|>\n", CONTENT, "<|end|>\n"),
    stop_words=("<|end|>",),
    replace_eos=True,
)

PHI_SMALL = replace(PHI, name="phi_small", prefix=(Token("<|endoftext|>"),))

PHI4 = replace(
    PHI,
    name="phi4",
    user=("<|im_start|>user<|im_sep|>", CONTENT, "<|im_end|>"),
    generation=("<|im_start|>assistant<|im_sep|>",),
    assistant=(CONTENT, "<|im_end|>"),
    system=("<|im_start|>system<|im_sep|>", CONTENT, "<|im_end|>"),
    stop_words=("<|im_end|>",),
)

PHI4_MINI = replace(
    PHI,
    name="phi4_mini",
    user=("<|user|>", CONTENT, "<|end|>"),
    generation=("<|assistant|>",),
    assistant=(CONTENT, "<|end|>"),
    system=("<|system|>", CONTENT, "<|end|>"),
    tools=("<|tool|>", CONTENT, "<|/tool|>"),
    tool_format="phi4_mini",
)

TEMPLATES = (PHI, PHI_SMALL, PHI4, PHI4_MINI)
