"""Templates of the Qwen models, and of models that keep their form."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import CONTENT, MediaTokens
from llamafactory.rendering.templates.chatml import FRAME

HELPFUL = "You are a helpful assistant."

QWEN = replace(
    FRAME,
    name="qwen",
    observation=("<|im_start|>user\n<tool_response>\n", CONTENT, "\n</tool_response><|im_end|>\n"),
    observation_separator=("\n</tool_response>\n<tool_response>\n",),
    default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    tool_format="qwen",
    replace_eos=True,
)

QWEN2_AUDIO = replace(
    FRAME,
    name="qwen2_audio",
    default_system=HELPFUL,
    replace_eos=True,
    media=MediaTokens("qwen2_audio", audio="<|AUDIO|>"),
)

VISION = MediaTokens(
    "qwen2_vl", image="<|image_pad|>", video="<|video_pad|>", vision_ends=("<|vision_start|>", "<|vision_end|>")
)
QWEN2_VL = replace(QWEN, name="qwen2_vl", default_system=HELPFUL, media=VISION)
QWEN2_OMNI = replace(
    QWEN2_VL,
    name="qwen2_omni",
    media=MediaTokens(
        "qwen2_omni",
        image="<|IMAGE|>",
        video="<|VIDEO|>",
        audio="<|AUDIO|>",
        vision_ends=("<|vision_bos|>", "<|vision_eos|>"),
        audio_ends=("<|audio_bos|>", "<|audio_eos|>"),
    ),
)

QWEN3_NOTHINK = replace(QWEN, name="qwen3_nothink", default_system="")
QWEN3 = replace(QWEN3_NOTHINK, name="qwen3", reasoning=True)

QWEN3_VL_NOTHINK = replace(QWEN3_NOTHINK, name="qwen3_vl_nothink", media=replace(VISION, processor="qwen3_vl"))
QWEN3_VL = replace(QWEN3_VL_NOTHINK, name="qwen3_vl", reasoning=True)

QWEN3_OMNI_NOTHINK = replace(
    QWEN3_NOTHINK,
    name="qwen3_omni_nothink",
    media=replace(
        VISION, processor="qwen2_omni", audio="<|audio_pad|>", audio_ends=("<|audio_start|>", "<|audio_end|>")
    ),
)
QWEN3_OMNI = replace(QWEN3_OMNI_NOTHINK, name="qwen3_omni", reasoning=True)

QWEN3_5_NOTHINK = replace(QWEN3_VL_NOTHINK, name="qwen3_5_nothink", tool_format="qwen3_5")
QWEN3_5 = replace(QWEN3_5_NOTHINK, name="qwen3_5", reasoning=True)
QWEN3_6 = replace(QWEN3_5, name="qwen3_6")

KEYE_VL = replace(QWEN3, name="keye_vl", media=VISION)

MOSS_VL = replace(
    QWEN3_NOTHINK,
    name="moss_vl",
    bare_tools=True,
    media=replace(VISION, processor="moss_vl", time_ends=("<|time_start|>", "<|time_end|>")),
)

TEMPLATES = (
    QWEN, QWEN2_AUDIO, QWEN2_VL, QWEN2_OMNI, QWEN3_NOTHINK, QWEN3, QWEN3_VL_NOTHINK, QWEN3_VL, QWEN3_OMNI_NOTHINK,
    QWEN3_OMNI, QWEN3_5_NOTHINK, QWEN3_5, QWEN3_6, KEYE_VL, MOSS_VL,
)  # fmt: skip
