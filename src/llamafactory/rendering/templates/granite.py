"""Templates of the Granite models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import CONTENT, EOS, MediaTokens, Template

GRANITE3 = Template(
    name="granite3",
    user=("<|start_of_role|>user<|end_of_role|>", CONTENT, "<|end_of_text|>\n"),
    generation=("<|start_of_role|>assistant<|end_of_role|>",),
    assistant=(CONTENT, "<|end_of_text|>\n"),
    system=("<|start_of_role|>system<|end_of_role|>", CONTENT, "<|end_of_text|>\n"),
)

GRANITE3_VISION = Template(
    name="granite3_vision",
    user=("<|user|>\n", CONTENT, "\n"),
    generation=("<|assistant|>\n",),
    assistant=(CONTENT, EOS),
    system=("<|system|>\n", CONTENT, "\n"),
    default_system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    media=MediaTokens("llava_next", image="<image>"),
)

GRANITE4 = replace(
    GRANITE3,
    name="granite4",
    observation=("<|start_of_role|>tool<|end_of_role|>", CONTENT, "<|end_of_text|>\n"),
    observation_generation=("<|start_of_role|>assistant\n",),
    default_system="You are Granite, developed by IBM. You are a helpful AI assistant.",
    stop_words=("<|end_of_text|>",),
)

TEMPLATES = (GRANITE3, GRANITE3_VISION, GRANITE4)
