"""Templates of the Moonlight and Kimi models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import CONTENT, MediaTokens, Template

MOONLIGHT = Template(
    name="moonlight",
    user=("<|im_user|>user<|im_middle|>", CONTENT, "<|im_end|>"),
    generation=("<|im_assistant|>assistant<|im_middle|>",),
    assistant=(CONTENT, "<|im_end|>"),
    system=("<|im_system|>system<|im_middle|>", CONTENT, "<|im_end|>"),
    default_system="You are a helpful assistant provided by Moonshot-AI.",
    stop_words=("<|im_end|>",),
    replace_eos=True,
)

KIMI_VL = replace(
    MOONLIGHT,
    name="kimi_vl",
    default_system="You are a helpful assistant",
    thought_words=("◁think▷", "◁/think▷"),
    replace_eos=False,
    reasoning=True,
    media=MediaTokens("kimi_vl", image="<|media_pad|>"),
)

TEMPLATES = (MOONLIGHT, KIMI_VL)
