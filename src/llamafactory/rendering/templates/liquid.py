"""Templates of the LFM models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import CONTENT, MediaTokens
from llamafactory.rendering.templates.chatml import FRAME

LFM2 = replace(
    FRAME,
    name="lfm2",
    observation=("<|im_start|>tool\n<|tool_response_start|>", CONTENT, "<|tool_response_end|><|im_end|>\n"),
    default_system="You are a helpful AI assistant.",
    tool_call_words=("<|tool_call_start|>", "<|tool_call_end|>"),
    tool_format="lfm2",
    replace_eos=True,
)

LFM2_VL = replace(
    LFM2,
    name="lfm2_vl",
    default_system="You are a helpful multimodal assistant by Liquid AI.",
    media=MediaTokens("lfm2_vl", image="<image>"),
)

TEMPLATES = (LFM2, LFM2_VL)
