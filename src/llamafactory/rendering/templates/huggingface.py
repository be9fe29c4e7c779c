"""Templates of models made at Hugging Face."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import CONTENT, EOS, Template
from llamafactory.rendering.templates.chatml import FRAME

SMOLLM = replace(FRAME, name="smollm")

SMOLLM2 = replace(
    SMOLLM, name="smollm2", default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face."
)

STARCHAT = Template(
    name="starchat",
    user=("<|user|>\n", CONTENT, "<|end|>\n"),
    generation=("<|assistant|>",),
    assistant=(CONTENT, "<|end|>\n"),
    system=("<|system|>\n", CONTENT, "<|end|>\n"),
    stop_words=("<|end|>",),
)

ZEPHYR = Template(
    name="zephyr",
    user=("<|user|>\n", CONTENT, EOS),
    generation=("<|assistant|>\n",),
    assistant=(CONTENT, EOS),
    system=("<|system|>\n", CONTENT, EOS),
    default_system="You are Zephyr, a helpful assistant.",
)

TEMPLATES = (SMOLLM, SMOLLM2, STARCHAT, ZEPHYR)
