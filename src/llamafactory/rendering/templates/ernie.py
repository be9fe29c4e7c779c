"""Templates of the ERNIE models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import CONTENT, MediaTokens, Template

ERNIE = Template(
    name="ernie",
    user=("<|im_start|>user\n", CONTENT, "<|im_end|>\n\n"),
    generation=("<|im_start|>assistant\n",),
    assistant=(CONTENT, "<|im_end|>\n\n"),
    system=("<|im_start|>system\n", CONTENT, "<|im_end|>\n\n"),
    observation=("<|im_start|>tool\n", CONTENT, "<|im_end|>\n\n"),
    default_system="<global_setting>\nthink_mode=True\n</global_setting>",
    stop_words=("<|im_end|>",),
)

ERNIE_NOTHINK = Template(
    name="ernie_nothink",
    user=("User: ", CONTENT, "\n"),
    generation=("Assistant: ",),
    assistant=(CONTENT, "<|end_of_sentence|>"),
    system=(CONTENT, "\n"),
    prefix=("<|begin_of_sentence|>",),
    stop_words=("<|end_of_sentence|>",),
)

ERNIE_VL = replace(
    ERNIE_NOTHINK,
    name="ernie_vl",
    user=("User: ", CONTENT),
    generation=("\nAssistant: ",),
    prefix=(),
    replace_eos=True,
    replace_jinja_template=True,
    reasoning=True,
    media=MediaTokens("ernie_vl", image="<|IMAGE_PLACEHOLDER|>", video="<|VIDEO_PLACEHOLDER|>"),
)

TEMPLATES = (ERNIE, ERNIE_NOTHINK, ERNIE_VL)
