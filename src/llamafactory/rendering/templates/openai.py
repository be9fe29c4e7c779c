"""Templates of the gpt-oss models."""

from __future__ import annotations

from llamafactory.rendering.template import CONTENT, Template

GPT_OSS = Template(
    name="gpt_oss",
    user=("<|start|>user<|message|>", CONTENT, "<|end|>"),
    generation=("<|start|>assistant",),
    assistant=(CONTENT,),
    system=("<|start|>system<|message|>", CONTENT, "<|end|>"),
    default_system="You are ChatGPT, a large language model trained by OpenAI.",
    thought_words=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    efficient_eos=True,
    reasoning=True,
)

TEMPLATES = (GPT_OSS,)
