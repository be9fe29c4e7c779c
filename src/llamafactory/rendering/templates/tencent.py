"""Templates of the Hunyuan and Youtu models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import BOS, CONTENT, MediaTokens, Template

HUNYUAN = Template(
    name="hunyuan",
    user=(CONTENT, "<|extra_0|>"),
    assistant=(CONTENT, "<|eos|>"),
    system=(CONTENT, "<|extra_4|>"),
    prefix=("<|startoftext|>",),
    stop_words=("<|eos|>",),
)

HY_DENSE_7B = replace(HUNYUAN, name="hy_dense_7b", assistant=(CONTENT,), prefix=(BOS,), efficient_eos=True)

HUNYUAN_SMALL = Template(
    name="hunyuan_small",
    user=("<｜hy_User｜>", CONTENT, "<｜hy_place▁holder▁no▁8｜>"),
    assistant=(CONTENT, "<｜hy_place▁holder▁no▁2｜>"),
    system=(CONTENT, "<｜hy_place▁holder▁no▁3｜>"),
    prefix=("<｜hy_begin▁of▁sentence｜>",),
    stop_words=("<｜hy_place▁holder▁no▁2｜>",),
)

HY_DENSE_1_8B = replace(
    HUNYUAN_SMALL,
    name="hy_dense_1_8b",
    user=("<｜hy_User｜>", CONTENT),
    generation=("<｜hy_Assistant｜>",),
    assistant=(CONTENT,),
    prefix=(BOS,),
    efficient_eos=True,
)

HY3 = Template(
    name="hy3",
    user=("<｜hy_User｜>", CONTENT),
    generation=("<｜hy_Assistant｜>",),
    assistant=(CONTENT, "<｜hy_eos｜>"),
    prefix=(BOS,),
    stop_words=("<｜hy_eos｜>",),
    thought_words=("<think>", "</think>"),
    replace_eos=True,
    reasoning=True,
)

YOUTU = Template(
    name="youtu",
    user=("<|User|>", CONTENT),
    generation=("<|Assistant|>",),
    assistant=(CONTENT, "<|end_of_text|>"),
    observation=("<tool_response>\n", CONTENT, "\n</tool_response>"),
    function=(CONTENT,),
    prefix=(BOS,),
    stop_words=("<|end_of_text|>",),
    replace_eos=True,
    reasoning=True,
)

YOUTU_VL = Template(
    name="youtu_vl",
    user=("<|begin_of_text|>user\n", CONTENT, "<|end_of_text|>\n"),
    generation=("<|begin_of_text|>assistant\n",),
    assistant=(CONTENT, "<|end_of_text|>\n"),
    system=("<|begin_of_text|>system\n", CONTENT, "<|end_of_text|>\n"),
    default_system="You are a helpful assistant.",
    stop_words=("<|end_of_text|>",),
    media=MediaTokens(
        "youtu_vl", image="<|image_pad|>", video="<|video_pad|>", vision_ends=("<|vision_start|>", "<|vision_end|>")
    ),
)

TEMPLATES = (HUNYUAN, HY_DENSE_7B, HUNYUAN_SMALL, HY_DENSE_1_8B, HY3, YOUTU, YOUTU_VL)
